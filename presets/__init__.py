"""The catalogue, data only: `models/` published hyperparameters, `claims/` what was said of them, `gpus/` datasheets."""
