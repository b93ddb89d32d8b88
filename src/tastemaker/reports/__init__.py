"""What a run shows: curves (`plot.py`) and rows of pictures (`pictures.py`)."""
