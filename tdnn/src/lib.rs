//! EfficientTDNN (Wang et al., IEEE/ACM TASLP 30, 2022): the speaker-verification supernet.
