"""Diffusion: schedules, parameterizations and losses, denoisers, guidance, and samplers that know neither."""
