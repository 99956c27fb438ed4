"""The report card of predictors: metrics, baselines, noise floor, intervals, tables and plots. Offline."""
