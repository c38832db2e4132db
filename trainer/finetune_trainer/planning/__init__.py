"""Plans a run before its first step: parameters and modules, steps and schedules, data checks and previews."""
