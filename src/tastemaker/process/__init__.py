"""The denoising chain as numbers: schedules, predictions, transitions, samplers and keyed noise."""
