"""The mathematics of diffusion, in numpy: noise schedules, denoiser outputs, guidance and solvers."""
