//! Segments, masks and augmentation.

use anyhow::Result;
use candle_core::{Device, Tensor};
use shared::data::augment::{Mix, add_noises, convolve, mask_range, with_unit_energy};
use shared::data::{consecutive_segments, evaluation_segments};
use tests::golden::{Case, Class};

use crate::{size, sizes};

pub fn specaugment(case: &mut Case) -> Result<()> {
    let features = case.array("in.features")?.clone();
    let &[batch, _, bands, frames] = features.dims.as_slice() else {
        anyhow::bail!("features of shape {:?}", features.dims)
    };
    let mut values = features.f32s();
    let draws = |case: &Case, axis: &str| -> Result<Vec<(f64, f64)>> {
        let widths = case.array(&format!("in.{axis}_u_len"))?.values.clone();
        let starts = case.array(&format!("in.{axis}_u_start"))?.values.clone();
        Ok(widths.into_iter().zip(starts).collect())
    };
    for (axis, result, length) in [("freq", "after_freq", bands), ("time", "after_time", frames)] {
        let limit = size(&case.config[format!("{axis}_param")])?;
        let draws = draws(case, axis)?;
        for (item, (width, start)) in values.chunks_mut(bands * frames).zip(draws) {
            let masked = mask_range(width, start, limit, length);
            for (i, value) in item.iter_mut().enumerate() {
                let place = if axis == "freq" { i / frames } else { i % frames };
                if masked.contains(&place) {
                    *value = 0.0;
                }
            }
        }
        let tensor = Tensor::from_slice(&values, (batch, 1, bands, frames), &Device::Cpu)?;
        case.check_equal(result, &tensor)?;
    }
    Ok(())
}

pub fn augmentation(case: &mut Case) -> Result<()> {
    let audio = case.array("in.audio")?.clone();
    let samples = audio.f32s();
    for kind in case.names("in.").iter().filter_map(|name| name.strip_suffix(".noises")) {
        let noises = case.array(&format!("in.{kind}.noises"))?.clone();
        let noises: Vec<Vec<f32>> =
            noises.f32s().chunks(noises.dims[1]).map(<[f32]>::to_vec).collect();
        let ratios = case.array(&format!("in.{kind}.snr"))?.values.clone();
        let mixed = add_noises(&samples, &noises, &ratios, Mix::Mean);
        let mixed = Tensor::from_vec(mixed, audio.dims.as_slice(), &Device::Cpu)?;
        case.check(&format!("{kind}.mixed"), &mixed, Class::Forward)?;
    }
    let response = with_unit_energy(&case.array("in.rir")?.f32s());
    let reverberated = convolve(&samples, &response);
    let reverberated = Tensor::from_vec(reverberated, audio.dims.as_slice(), &Device::Cpu)?;
    case.check("reverb", &reverberated, Class::Forward)
}

pub fn segments(case: &mut Case) -> Result<()> {
    let cases = case.config["cases"].as_array().cloned().unwrap_or_default();
    for (i, item) in cases.iter().enumerate() {
        let samples = case.array(&format!("in.wav{i}"))?.f32s();
        let pieces = evaluation_segments(
            &samples,
            size(&item["num_samples"])?,
            size(&item["num_eval"])?,
            size(&item["min_samples"])?,
        );
        let dims = sizes(&item["out_shape"])?;
        let tensor = Tensor::from_vec(pieces.concat(), dims, &Device::Cpu)?;
        case.check_equal(&format!("segs{i}"), &tensor)?;
        let pieces = consecutive_segments(&samples, case.array(&format!("out.wavseg{i}"))?.dims[1]);
        let dims = (pieces.len(), pieces[0].len());
        let tensor = Tensor::from_vec(pieces.concat(), dims, &Device::Cpu)?;
        case.check_equal(&format!("wavseg{i}"), &tensor)?;
    }
    Ok(())
}
