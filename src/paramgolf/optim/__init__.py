"""Optimization: MuonEq-R, the exact cover of parameters, schedules, weight averaging."""
