//! Where in a recording somebody speaks, told by energy alone.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Length of a frame.
const FRAME_S: f64 = 0.01;
/// Corner of the high-pass before the energy: speech begins above, hum and wind end below.
const HIGH_PASS_HZ: f64 = 80.0;
/// Levels are counted in bins of this width, from [`LOWEST_DB`] up to full scale and beyond.
const BIN_DB: f64 = 0.5;
const LOWEST_DB: f64 = -110.0;
const BINS: usize = 240;

/// Settings of a [`SpeechDetector`].
///
/// A frame of 10 ms is loud when its level (after a high-pass at 80 Hz) is above all of
/// `absolute_db`, `below_peak_db` under the local peak, and `above_floor_db` or `range_share` of
/// the range from floor to peak, whichever is more, over the local floor. Floor and peak are the
/// 10th and 99th percentile of the levels of the `context_s` around the frame. Where the two are
/// less than `least_range_db` apart for a whole second or more, nothing is loud: speech is never
/// that even.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpeechDetectorConfig {
    /// Level below which nothing is speech, in dB relative to full scale.
    pub absolute_db: f64,
    /// What is further below the local peak is not speech.
    pub below_peak_db: f64,
    /// Speech is at least so much above the local floor.
    pub above_floor_db: f64,
    /// Speech is at least at this share of the range from local floor to local peak.
    pub range_share: f64,
    /// Least range from floor to peak.
    pub least_range_db: f64,
    /// Length of the surroundings of a frame, before and after it together.
    pub context_s: f64,
    /// Shorter loud stretches are clicks.
    pub min_speech_s: f64,
    /// Kept before each loud stretch.
    pub pad_before_s: f64,
    /// Kept after each loud stretch.
    pub pad_after_s: f64,
    /// Shorter pauses between what is kept are kept too.
    pub min_pause_s: f64,
}

impl Default for SpeechDetectorConfig {
    /// Rather keeps a noise than loses a word.
    fn default() -> Self {
        Self {
            absolute_db: -70.0,
            below_peak_db: 40.0,
            above_floor_db: 4.0,
            range_share: 0.25,
            least_range_db: 5.0,
            context_s: 10.0,
            min_speech_s: 0.03,
            pad_before_s: 0.1,
            pad_after_s: 0.15,
            min_pause_s: 0.3,
        }
    }
}

/// A stretch of speech, in seconds from the start of the recording.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Segment {
    /// Where it begins.
    pub start_s: f64,
    /// Where it ends.
    pub end_s: f64,
}

/// What a [`SpeechDetector`] found in a whole recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Speech {
    /// The stretches of speech in their order.
    pub segments: Vec<Segment>,
    /// Length of the recording.
    pub duration_s: f64,
    /// Length of all segments together.
    pub speech_s: f64,
}

/// Passes on the samples of a recording in which somebody speaks.
///
/// It works in memory for about `context_s` of audio, however long the recording is, and the cuts
/// between the blocks in which samples arrive make no difference. Music and tones that come and go
/// pass as speech; a steady noise or tone does not.
pub struct SpeechDetector {
    config: FrameConfig,
    rate_hz: f64,
    high_pass: HighPass,
    /// Samples from `first_sample` on that may still have to be passed on.
    waiting: VecDeque<f32>,
    first_sample: usize,
    /// Samples so far.
    samples: usize,
    /// Energy of the frame that is being filled.
    energy: f64,
    filled: usize,
    levels: Levels,
    stretches: Stretches,
    segments: Vec<(usize, usize)>,
}

/// The settings in frames.
#[derive(Clone, Debug)]
struct FrameConfig {
    settings: SpeechDetectorConfig,
    frame_samples: usize,
    /// Frames of context to each side.
    reach: usize,
    min_speech: usize,
    pad_before: usize,
    pad_after: usize,
    min_pause: usize,
}

impl SpeechDetector {
    /// A detector for samples at `rate_hz`.
    ///
    /// # Errors
    /// When a setting is not finite, a length is negative or above a minute, or the rate is below
    /// 1000 Hz.
    pub fn new(settings: SpeechDetectorConfig, rate_hz: u32) -> Result<Self> {
        let lengths_s = [
            settings.context_s,
            settings.min_speech_s,
            settings.pad_before_s,
            settings.pad_after_s,
            settings.min_pause_s,
        ];
        let levels_db = [
            settings.absolute_db,
            settings.below_peak_db,
            settings.above_floor_db,
            settings.range_share,
            settings.least_range_db,
        ];
        if rate_hz < 1000
            || !lengths_s.iter().all(|length_s| (0.0..=60.0).contains(length_s))
            || !levels_db.iter().all(|level| level.is_finite())
        {
            return Err(Error::Argument(
                "speech detector: lengths must be between 0 and 60 s, levels finite, the rate at \
                 least 1000 Hz"
                    .into(),
            ));
        }
        let frames = |length_s: f64| (length_s / FRAME_S).round() as usize;
        let config = FrameConfig {
            frame_samples: (f64::from(rate_hz) * FRAME_S).round() as usize,
            reach: frames(settings.context_s / 2.0),
            min_speech: frames(settings.min_speech_s).max(1),
            pad_before: frames(settings.pad_before_s),
            pad_after: frames(settings.pad_after_s),
            min_pause: frames(settings.min_pause_s),
            settings,
        };
        Ok(Self {
            config,
            rate_hz: rate_hz.into(),
            high_pass: HighPass::new(HIGH_PASS_HZ, rate_hz.into()),
            waiting: VecDeque::new(),
            first_sample: 0,
            samples: 0,
            energy: 0.0,
            filled: 0,
            levels: Levels::default(),
            stretches: Stretches::default(),
            segments: vec![],
        })
    }

    /// Takes the next samples, in +-1, and passes on to `sink` what has turned out to be speech.
    ///
    /// # Errors
    /// [`Error::NonFinite`]; those of `sink`.
    pub fn push(
        &mut self,
        samples: &[f32],
        mut sink: impl FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        for sample in samples {
            if !sample.is_finite() {
                return Err(Error::NonFinite { what: format!("sample {}", self.samples) });
            }
            self.waiting.push_back(*sample);
            self.samples += 1;
            self.energy += self.high_pass.apply(f64::from(*sample)).powi(2);
            self.filled += 1;
            if self.filled == self.config.frame_samples {
                self.end_frame();
                if self.levels.count > self.config.reach {
                    self.decide(&mut sink)?;
                }
            }
        }
        Ok(())
    }

    /// Passes on the rest and says what was found.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn finish(mut self, mut sink: impl FnMut(&[f32]) -> Result<()>) -> Result<Speech> {
        if self.filled > 0 {
            self.end_frame();
        }
        while self.stretches.frames < self.levels.count {
            self.decide(&mut sink)?;
        }
        if let Some((_, end)) = self.stretches.open.take() {
            self.pass_on(end + self.config.pad_after, &mut sink)?;
        }
        let seconds = |sample: usize| sample as f64 / self.rate_hz;
        let segments: Vec<Segment> = self
            .segments
            .iter()
            .map(|(start, end)| Segment { start_s: seconds(*start), end_s: seconds(*end) })
            .collect();
        let speech: usize = self.segments.iter().map(|(start, end)| end - start).sum();
        Ok(Speech { segments, duration_s: seconds(self.samples), speech_s: seconds(speech) })
    }

    fn end_frame(&mut self) {
        let power = self.energy / self.filled as f64;
        self.levels.push(10.0 * (power + 1e-12).log10());
        (self.energy, self.filled) = (0.0, 0);
    }

    /// Decides on the next frame, for which there is as much context as there will be.
    fn decide(&mut self, sink: &mut impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let frame = self.stretches.frames;
        let loud = self.levels.is_loud(frame, &self.config);
        let config = self.config.clone();
        match self.stretches.next(loud, &config) {
            Change::None => {}
            Change::Opened { before: Some(end) } => {
                self.pass_on(end, sink)?;
                self.forget_before(self.stretches.open.map_or(frame, |(start, _)| start));
            }
            Change::Opened { before: None } => {
                self.forget_before(self.stretches.open.map_or(frame, |(start, _)| start));
            }
            Change::Closed(end) => {
                self.pass_on(end, sink)?;
            }
        }
        match self.stretches.open {
            Some((_, end)) => self.pass_on(end, sink)?,
            None => self
                .forget_before((frame + 1).saturating_sub(config.pad_before + config.min_speech)),
        }
        Ok(())
    }

    /// Passes on the waiting samples of the open segment before frame `end`.
    fn pass_on(&mut self, end: usize, sink: &mut impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let end = (end * self.config.frame_samples).min(self.samples);
        let count = end.saturating_sub(self.first_sample);
        if count == 0 {
            return Ok(());
        }
        match self.segments.last_mut() {
            Some((_, last)) if *last == self.first_sample => *last = end,
            _ => self.segments.push((self.first_sample, end)),
        }
        let speech: Vec<f32> = self.waiting.drain(..count).collect();
        self.first_sample = end;
        sink(&speech)
    }

    /// Drops waiting samples before `frame`.
    fn forget_before(&mut self, frame: usize) {
        let start = (frame * self.config.frame_samples).min(self.samples);
        let count = start.saturating_sub(self.first_sample);
        self.waiting.drain(..count);
        self.first_sample += count;
    }
}

/// Levels around the frame that is decided on, and how often each occurs among them.
#[derive(Default)]
struct Levels {
    /// Levels of frames from `first` on.
    recent: VecDeque<f64>,
    first: usize,
    /// Frames so far.
    count: usize,
    /// The frames that are counted in `histogram`, from `first` on.
    counted_end: usize,
    histogram: Vec<usize>,
}

impl Levels {
    fn push(&mut self, level_db: f64) {
        self.recent.push_back(level_db);
        self.count += 1;
    }

    /// Whether `frame` is loud. Frames come in their order.
    fn is_loud(&mut self, frame: usize, config: &FrameConfig) -> bool {
        self.histogram.resize(BINS, 0);
        let end = (frame + config.reach + 1).min(self.count);
        while self.counted_end < end {
            if let Some(level) = self.recent.get(self.counted_end - self.first) {
                self.histogram[bin(*level)] += 1;
            }
            self.counted_end += 1;
        }
        while self.first + config.reach < frame {
            if let Some(level) = self.recent.pop_front() {
                self.histogram[bin(level)] -= 1;
            }
            self.first += 1;
        }
        let settings = &config.settings;
        let around = self.counted_end - self.first;
        let (floor, peak) = (self.percentile(0.1, around), self.percentile(0.99, around));
        let range = peak - floor;
        let even = range < settings.least_range_db && around as f64 * FRAME_S >= 1.0;
        // A short clip has no floor: all of it may be one word.
        let over_floor = match range < settings.least_range_db {
            true => f64::NEG_INFINITY,
            false => floor + settings.above_floor_db.max(settings.range_share * range),
        };
        let threshold = settings.absolute_db.max(peak - settings.below_peak_db).max(over_floor);
        !even && self.recent.get(frame - self.first).is_some_and(|level| *level > threshold)
    }

    /// The middle of the bin below which `share` of the `total` counted levels are.
    fn percentile(&self, share: f64, total: usize) -> f64 {
        let wanted = (share * total as f64) as usize;
        let mut below = 0;
        let found = self.histogram.iter().position(|count| {
            below += count;
            below > wanted
        });
        LOWEST_DB + (found.unwrap_or(BINS - 1) as f64 + 0.5) * BIN_DB
    }
}

fn bin(level_db: f64) -> usize {
    (((level_db - LOWEST_DB) / BIN_DB).max(0.0) as usize).min(BINS - 1)
}

/// From loud frames to segments, all in numbers of frames.
#[derive(Default)]
struct Stretches {
    /// Frames decided on.
    frames: usize,
    /// Where the current run of loud frames began.
    run: Option<usize>,
    /// The segment that may still grow: start with padding, end of its last loud frame.
    open: Option<(usize, usize)>,
    /// End of the last segment with padding.
    closed: usize,
}

/// What a frame changes.
enum Change {
    None,
    /// A segment began; the one before it, if any was open, ends here.
    Opened {
        before: Option<usize>,
    },
    /// The open segment ends here.
    Closed(usize),
}

impl Stretches {
    fn next(&mut self, loud: bool, config: &FrameConfig) -> Change {
        let frame = self.frames;
        self.frames += 1;
        let run = match (loud, self.run) {
            (true, None) => frame,
            (true, Some(start)) => start,
            (false, _) => {
                self.run = None;
                return self.close_if_over(frame, config);
            }
        };
        self.run = Some(run);
        if frame + 1 - run < config.min_speech {
            return Change::None;
        }
        let start = run.saturating_sub(config.pad_before).max(self.closed);
        match self.open {
            Some((open, end)) if start <= end + config.pad_after + config.min_pause => {
                self.open = Some((open, frame + 1));
                Change::None
            }
            open => {
                let before = open.map(|(_, end)| end + config.pad_after);
                self.open = Some((start, frame + 1));
                Change::Opened { before }
            }
        }
    }

    /// Closes the open segment when nothing that comes can join it.
    fn close_if_over(&mut self, frame: usize, config: &FrameConfig) -> Change {
        let reach = config.pad_after + config.min_pause + config.pad_before + config.min_speech;
        match self.open {
            Some((_, end)) if frame > end + reach => {
                self.open = None;
                self.closed = end + config.pad_after;
                Change::Closed(self.closed)
            }
            _ => Change::None,
        }
    }
}

/// Second-order Butterworth high-pass (bilinear transform).
struct HighPass {
    gain: f64,
    feedback: [f64; 2],
    inputs: [f64; 2],
    outputs: [f64; 2],
}

impl HighPass {
    fn new(corner_hz: f64, rate_hz: f64) -> Self {
        let k = (std::f64::consts::PI * corner_hz / rate_hz).tan();
        let scale = 1.0 / (1.0 + std::f64::consts::SQRT_2 * k + k * k);
        Self {
            gain: scale,
            feedback: [
                2.0 * (k * k - 1.0) * scale,
                (1.0 - std::f64::consts::SQRT_2 * k + k * k) * scale,
            ],
            inputs: [0.0; 2],
            outputs: [0.0; 2],
        }
    }

    fn apply(&mut self, x: f64) -> f64 {
        let [x1, x2] = self.inputs;
        let [y1, y2] = self.outputs;
        let [a1, a2] = self.feedback;
        let y = self.gain * (x - 2.0 * x1 + x2) - a1 * y1 - a2 * y2;
        self.inputs = [x, x1];
        self.outputs = [y, y1];
        y
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Stream;

    const RATE_HZ: u32 = 16_000;

    /// Noise of the given RMS in the given seconds.
    fn noise(rms: f64, seconds: f64, index: u64) -> Vec<f32> {
        let mut stream = Stream::new(1, "speech test", index);
        let count = (seconds * f64::from(RATE_HZ)) as usize;
        (0..count).map(|_| (rms * stream.normal()) as f32).collect()
    }

    fn keep(speech: &mut Vec<f32>, part: &[f32]) -> Result<()> {
        speech.extend_from_slice(part);
        Ok(())
    }

    fn detect(samples: &[f32], block: usize) -> (Speech, Vec<f32>) {
        let config = SpeechDetectorConfig::default();
        let mut detector = SpeechDetector::new(config, RATE_HZ).unwrap();
        let mut speech = vec![];
        for block in samples.chunks(block.max(1)) {
            detector.push(block, |part| keep(&mut speech, part)).unwrap();
        }
        let found = detector.finish(|part| keep(&mut speech, part)).unwrap();
        (found, speech)
    }

    #[test]
    fn bursts_are_found_where_they_are() {
        for floor in [0.0, 1e-4, 0.003] {
            let mut samples = noise(floor, 1.0, 0);
            samples.extend(noise(0.1, 0.5, 1));
            samples.extend(noise(floor, 2.0, 2));
            samples.extend(noise(0.05, 0.4, 3));
            samples.extend(noise(floor, 0.2, 4));
            samples.extend(noise(0.1, 0.3, 5));
            samples.extend(noise(floor, 1.0, 6));
            let (found, speech) = detect(&samples, 1000);
            let expected = [(0.9, 1.65), (3.4, 4.55)];
            assert_eq!(found.segments.len(), 2, "{floor}: {found:?}");
            for (segment, (start_s, end_s)) in found.segments.iter().zip(expected) {
                let near = |a: f64, b: f64| (a - b).abs() < 0.025;
                assert!(near(segment.start_s, start_s) && near(segment.end_s, end_s), "{found:?}");
            }
            let pieces: Vec<f32> = found
                .segments
                .iter()
                .flat_map(|segment| {
                    let place = |s: f64| (s * f64::from(RATE_HZ)).round() as usize;
                    samples[place(segment.start_s)..place(segment.end_s)].to_vec()
                })
                .collect();
            assert_eq!(pieces, speech);
            assert!((found.duration_s - 5.4).abs() < 1e-9);
        }
    }

    #[test]
    fn what_is_even_is_no_speech() {
        let tone: Vec<f32> = (0..48_000).map(|t| 0.3 * (0.2 * t as f32).sin()).collect();
        for (name, samples) in [
            ("nothing", vec![]),
            ("silence", vec![0.0; 48_000]),
            ("constant", vec![0.5; 48_000]),
            ("noise", noise(0.05, 3.0, 0)),
            ("tone", tone),
            ("faint", noise(1e-5, 3.0, 0)),
        ] {
            let (found, speech) = detect(&samples, 777);
            // The step at the start of a constant is a click.
            assert!(found.speech_s < 0.3, "{name}: {found:?}");
            assert_eq!(speech.len() as f64 / f64::from(RATE_HZ), found.speech_s);
        }
    }

    #[test]
    fn a_short_word_is_kept_whole() {
        for seconds in [0.05, 0.3, 0.9] {
            let samples = noise(0.1, seconds, 0);
            assert_eq!(detect(&samples, 100).1, samples, "{seconds}");
        }
    }

    #[test]
    fn memory_does_not_grow_with_the_recording() {
        let mut detector = SpeechDetector::new(SpeechDetectorConfig::default(), RATE_HZ).unwrap();
        for minute in 0..10 {
            let rms = if minute % 2 == 0 { 0.1 } else { 0.001 };
            for second in 0..60 {
                detector.push(&noise(rms, 1.0, minute * 60 + second), |_| Ok(())).unwrap();
            }
            assert!(detector.waiting.len() < 8 * RATE_HZ as usize);
            assert!(detector.levels.recent.len() < 1100);
        }
    }

    #[test]
    fn samples_and_settings_must_be_finite() {
        let mut detector = SpeechDetector::new(SpeechDetectorConfig::default(), RATE_HZ).unwrap();
        assert!(detector.push(&[0.0, f32::NAN], |_| Ok(())).is_err());
        for wrong in [-1.0, 1e3, f64::NAN] {
            let config = SpeechDetectorConfig { context_s: wrong, ..Default::default() };
            assert!(SpeechDetector::new(config, RATE_HZ).is_err());
        }
        assert!(SpeechDetector::new(SpeechDetectorConfig::default(), 10).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

        #[test]
        fn the_size_of_blocks_makes_no_difference(
            bursts in prop::collection::vec((0.0..0.2f64, 0.01..0.8f64), 1..25),
            block in 1usize..9000,
        ) {
            let samples: Vec<f32> = bursts
                .iter()
                .enumerate()
                .flat_map(|(i, (rms, seconds))| noise(*rms, *seconds, i as u64))
                .collect();
            prop_assert_eq!(detect(&samples, block), detect(&samples, usize::MAX));
        }
    }
}
