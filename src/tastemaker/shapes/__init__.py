"""The built-in world "Shapes": drawing, captions, an exact oracle, and the pretraining of its base models."""
