//! MM-Diffusion (Ruan et al., CVPR 2023), joint audio-video diffusion. Not built yet.
