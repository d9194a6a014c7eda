"""The catalogue, data only: hyperparameters in `models/`, what was said of them in `claims/`, datasheets in `gpus/`."""
