//! Sound to look at: waveform and spectrogram.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::scale::{Axis, Scale};
use super::svg::Svg;
use crate::Result;
use crate::dsp::{Stft, StftOptions, Window, WindowShape};
use crate::media::Waveform;
use crate::media::image::{Picture, png_bytes};

/// The figure in pixels, and the margins of its two parts.
const WIDTH: f64 = 640.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 8.0;
const WAVEFORM_HEIGHT: f64 = 70.0;
const GAP: f64 = 10.0;
const SPECTROGRAM_HEIGHT: f64 = 130.0;
const BOTTOM: f64 = 36.0;

/// Length of the spectrogram's transform.
const FFT_S: f64 = 0.032;
/// Most columns of the spectrogram.
const MOST_COLUMNS: usize = 1200;
/// Range of levels that the spectrogram shows, below its loudest point.
const RANGE_DB: f64 = 80.0;

/// Colours from silent to loud: five points of matplotlib's "magma", which grows evenly brighter.
const COLOURS: [[f64; 3]; 5] = [
    [0.0, 0.0, 4.0],
    [81.0, 18.0, 124.0],
    [183.0, 55.0, 121.0],
    [252.0, 137.0, 97.0],
    [252.0, 253.0, 191.0],
];

/// Waveform and spectrogram of a sound over one axis of time.
#[derive(Clone, Debug)]
pub struct SoundFigure {
    title: String,
    duration_s: f64,
    rate_hz: u32,
    /// Lowest and highest sample of each column.
    envelope: Vec<(f64, f64)>,
    /// The spectrogram as a PNG file, unless the sound is too short for one.
    spectrogram: Option<Vec<u8>>,
}

impl SoundFigure {
    /// The figure of the mean of a sound's channels. `title` is read to people who cannot see it.
    ///
    /// # Errors
    /// None that is known.
    pub fn new(title: &str, sound: &Waveform) -> Result<Self> {
        let mono = sound.mono();
        let columns = (WIDTH - LEFT - RIGHT) as usize;
        let per_column = mono.samples.len().div_ceil(columns).max(1);
        let envelope = mono.samples.chunks(per_column).map(|part| {
            let least = part.iter().copied().fold(f32::INFINITY, f32::min);
            let most = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            (f64::from(least), f64::from(most))
        });
        Ok(Self {
            title: title.to_owned(),
            duration_s: mono.duration_s(),
            rate_hz: mono.rate_hz,
            envelope: envelope.collect(),
            spectrogram: spectrogram(&mono)?.map(|picture| png_bytes(&picture, &[])).transpose()?,
        })
    }

    /// The figure as an SVG document.
    pub fn svg(&self) -> String {
        let height = TOP + WAVEFORM_HEIGHT + GAP + SPECTROGRAM_HEIGHT + BOTTOM;
        let mut svg = Svg::new(WIDTH, height, &self.title);
        let width = WIDTH - LEFT - RIGHT;
        let time = Axis::linear("").range(0.0, self.duration_s.max(1e-3));
        let time = time.fit([].into_iter(), 0.0, 8);
        self.draw_waveform(&mut svg, width);
        let top = TOP + WAVEFORM_HEIGHT + GAP;
        if let Some(spectrogram) = &self.spectrogram {
            let source = data_uri(spectrogram, "image/png");
            svg.element(
                "image",
                &[
                    ("x", &LEFT),
                    ("y", &top),
                    ("width", &width),
                    ("height", &SPECTROGRAM_HEIGHT),
                    ("preserveAspectRatio", &"none"),
                    ("href", &source),
                ],
            );
        }
        svg.rectangle((LEFT, top), width, SPECTROGRAM_HEIGHT, "frame");
        let frequency = Axis::linear("").range(0.0, f64::from(self.rate_hz) / 2000.0);
        let frequency = frequency.fit([].into_iter(), 0.0, 4);
        for (share, label) in frequency.ticks() {
            let y = top + SPECTROGRAM_HEIGHT * (1.0 - share);
            svg.line(&[(LEFT - 4.0, y), (LEFT, y)], "frame");
            svg.text(LEFT - 7.0, y + 4.0, "end", "faint", label);
        }
        svg.text_upwards(14.0, top + SPECTROGRAM_HEIGHT / 2.0, "faint", "kHz");
        draw_times(&mut svg, &time, top + SPECTROGRAM_HEIGHT, width);
        svg.finish()
    }

    fn draw_waveform(&self, svg: &mut Svg, width: f64) {
        let middle = TOP + WAVEFORM_HEIGHT / 2.0;
        let extremes = self.envelope.iter().map(|(least, most)| most.abs().max(least.abs()));
        // Quiet sound is shown larger; the axis says how much.
        let full = extremes.fold(0.01, f64::max).min(1.0);
        let y = |value: f64| middle - value.clamp(-full, full) / full * WAVEFORM_HEIGHT / 2.0;
        let x = |column: usize| LEFT + width * (column as f64 + 0.5) / self.envelope.len() as f64;
        // Half a pixel more at both sides keeps silence visible.
        let upper = self.envelope.iter().enumerate().map(|(i, (_, most))| (x(i), y(*most) - 0.5));
        let lower = self.envelope.iter().enumerate().map(|(i, (least, _))| (x(i), y(*least) + 0.5));
        let outline: Vec<(f64, f64)> = upper.chain(lower.rev()).collect();
        svg.area(&outline, "s0 bar");
        svg.rectangle((LEFT, TOP), width, WAVEFORM_HEIGHT, "frame");
        for (value, label) in [(full, format!("{full:.2}")), (0.0, "0".to_owned())] {
            svg.line(&[(LEFT - 4.0, y(value)), (LEFT, y(value))], "frame");
            svg.text(LEFT - 7.0, y(value) + 4.0, "end", "faint", &label);
        }
    }
}

fn draw_times(svg: &mut Svg, time: &Scale, bottom: f64, width: f64) {
    for (share, label) in time.ticks() {
        let x = LEFT + width * share;
        svg.line(&[(x, bottom), (x, bottom + 4.0)], "frame");
        svg.text(x, bottom + 17.0, "middle", "faint", label);
    }
    svg.text(LEFT + width / 2.0, bottom + 31.0, "middle", "faint", "seconds");
}

/// The spectrogram of the mean of a sound's channels: a column a frame, low frequencies at the bottom.
/// None where the sound is too short for one.
///
/// # Errors
/// None that is known.
pub fn spectrogram(sound: &Waveform) -> Result<Option<Picture>> {
    let sound = sound.mono();
    let fft_samples = ((FFT_S * f64::from(sound.rate_hz)) as usize).next_power_of_two().max(16);
    let hop_samples = (fft_samples / 4).max(sound.samples.len() / MOST_COLUMNS);
    let stft = Stft::<f32>::new(StftOptions {
        fft_samples,
        hop_samples,
        window_samples: fft_samples,
        window: Window::periodic(WindowShape::Hann),
        centered: true,
    })?;
    if sound.samples.len() < stft.min_samples() {
        return Ok(None);
    }
    let power = stft.power(&sound.samples)?;
    let (columns, bins) = (stft.frames(sound.samples.len()), stft.bins());
    let loudest = power.iter().copied().fold(1e-10, f32::max);
    let mut pixels = Vec::with_capacity(3 * power.len());
    for bin in (0..bins).rev() {
        for column in 0..columns {
            let power = power.get(column * bins + bin).copied().unwrap_or(0.0);
            let level_db = 10.0 * f64::from((power / loudest).max(1e-12)).log10();
            pixels.extend(colour(1.0 + level_db / RANGE_DB));
        }
    }
    Ok(Some(Picture::new(columns, bins, pixels)?))
}

/// The colour of a level from 0 to 1.
fn colour(level: f64) -> [u8; 3] {
    let place = level.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let index = (place as usize).min(COLOURS.len() - 2);
    let share = place - index as f64;
    let (low, high) = (COLOURS[index], COLOURS[index + 1]);
    std::array::from_fn(|channel| (low[channel] + share * (high[channel] - low[channel])) as u8)
}

/// `bytes` of a media type as an address that holds them.
pub(super) fn data_uri(bytes: &[u8], media_type: &str) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_is_a_bright_line_at_its_frequency() {
        let samples =
            (0..16_000).map(|i| (f64::from(i) * 0.25 * std::f64::consts::PI).sin() as f32);
        let sound = Waveform::from_mono(samples.collect(), 16_000);
        let picture = spectrogram(&sound).unwrap().unwrap();
        let (width, height, pixels) = (picture.width(), picture.height(), picture.pixels());
        assert_eq!((width, height), (126, 257));
        let brightness = |row: &usize| {
            let place = 3 * (row * width + 60);
            pixels[place..place + 3].iter().map(|part| u32::from(*part)).sum::<u32>()
        };
        let brightest = (0..height).max_by_key(brightness).unwrap();
        // 2 kHz of 8 kHz, from the bottom.
        assert_eq!(brightest, 256 - 64);
    }

    #[test]
    fn any_sound_has_a_figure() {
        for samples in [0, 1, 100, 30_000, 2_000_000] {
            let sound = Waveform::from_mono(vec![0.0; samples], 16_000);
            let svg = SoundFigure::new("a <title>", &sound).unwrap().svg();
            roxmltree::Document::parse(&svg).unwrap();
            assert!(!svg.contains("NaN") && svg.contains("seconds"), "{samples}");
        }
    }
}
