//! Features of audio.

use anyhow::Result;
use candle_core::{Device, Tensor};
use shared::dsp::{LogMel, Stft};
use tdnn::{Frontend, FrontendConfig};
use tests::golden::{Case, Class};

use crate::number;

pub fn features(case: &mut Case) -> Result<()> {
    let waveform = case.array("in.waveform")?.clone();
    let (batch, length) = (waveform.dims[0], waveform.dims[1]);
    // The reference takes samples at their own scale.
    let frontend = Frontend::new(FrontendConfig { amplitude: 1.0, ..FrontendConfig::default() })?;
    let recordings: Vec<Vec<f32>> = waveform.f32s().chunks(length).map(<[f32]>::to_vec).collect();
    let frames = frontend.frames(length);
    let bins = frontend.log_mel().stft().bins();

    let emphasised: Vec<Vec<f32>> =
        recordings.iter().map(|recording| frontend.pre_emphasised(recording)).collect();
    let stack = |rows: Vec<Vec<f32>>, dims: &[usize]| -> Result<Tensor> {
        Ok(Tensor::from_vec(rows.concat(), dims, &Device::Cpu)?)
    };
    let each = |apply: &dyn Fn(&[f32]) -> shared::Result<Vec<f32>>| {
        emphasised.iter().map(|samples| apply(samples)).collect::<shared::Result<Vec<_>>>()
    };
    let log_mel: &LogMel<f32> = frontend.log_mel();
    let stft: &Stft<f32> = log_mel.stft();
    let power = each(&|samples| stft.power(samples))?;
    let mel = each(&|samples| log_mel.mel(samples))?;
    let log_bands = each(&|samples| log_mel.compute(samples))?;
    let bands = [batch, frontend.bands(), frames];

    case.check("preemph", &stack(emphasised, &[batch, length])?, Class::Forward)?;
    if !case.names("out.power").is_empty() {
        let power = stack(power, &[batch, frames, bins])?.transpose(1, 2)?;
        case.check("power", &power, Class::Forward)?;
    }
    case.check("mel", &stack(mel, &bands)?, Class::Forward)?;
    case.check("logmel", &stack(log_bands, &bands)?, Class::Forward)?;
    let features = frontend.batch(&recordings, &Device::Cpu)?.unsqueeze(1)?;
    let silent = recordings.iter().any(|samples| samples.iter().all(|s| *s == samples[0]));
    if frames == 2 || silent {
        case.check_noise("features", &features, 1e-3)
    } else {
        case.check("features", &features, Class::Forward)
    }
}

pub fn tables(case: &mut Case) -> Result<()> {
    let config = FrontendConfig::default();
    let stated = case.config["fe"].clone();
    let (log_mel, stft) = (&config.log_mel, &config.log_mel.stft);
    for (name, ours) in [
        ("sample_rate", f64::from(log_mel.rate_hz)),
        ("n_fft", stft.fft_samples as f64),
        ("win", stft.window_samples as f64),
        ("hop", stft.hop_samples as f64),
        ("n_mels", log_mel.mel.filters as f64),
        ("f_min", log_mel.mel.low_hz),
        ("f_max", log_mel.mel.high_hz),
        ("log_floor_add", log_mel.log_offset),
        ("instance_norm_eps", config.norm_eps),
        ("preemph", config.pre_emphasis),
    ] {
        anyhow::ensure!(number(&stated[name])? == ours, "{name}: {} and {ours}", stated[name]);
    }
    let kernel = [-config.pre_emphasis, 1.0];
    case.check_numbers("preemph_kernel", &kernel, 1e-7)?;
    let window = stft.window.values(stft.window_samples);
    case.check("window400", &Tensor::new(window, &Device::Cpu)?, Class::Forward)?;
    let frontend = Frontend::new(config.clone())?;
    let bank = frontend.log_mel().filterbank();
    let shape = (bank.bins(), bank.filters());
    let matrix = Tensor::from_vec(bank.matrix(), shape, &Device::Cpu)?;
    case.check("mel_fb", &matrix, Class::Forward)
}
