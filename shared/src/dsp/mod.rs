//! Signal processing: short-time Fourier transform and mel filterbanks.
