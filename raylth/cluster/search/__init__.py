"""An Optuna study through Ray Tune."""
