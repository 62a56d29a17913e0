//! LightHuBERT (Wang et al., Interspeech 2022), the once-for-all HuBERT supernet. Not built yet.
