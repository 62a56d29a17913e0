//! The evaluation of generated clips as a user runs it, on made clips.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use mmdiffusion::demo_data::{self, DemoConfig};
use serde_json::Value;
use shared::media::video::write_mp4;
use shared::media::{Frames, Waveform};
use tests::tool::Workplace;

const CLIPS: u64 = 32;

/// A folder with made clips, and one with the same pictures and the same sounds, each with another's.
fn workplace() -> Workplace {
    let place = Workplace::new("mmdiffusion");
    let num = CLIPS.to_string();
    for (folder, seed) in [("real", "1"), ("other", "2")] {
        let make = ["make-demo-data", "--out", folder, "--num", &num, "--seed", seed];
        place.run(make.iter().chain(&["--size", "64", "--quiet"])).success();
    }
    let config = DemoConfig { side_pixels: 64, ..DemoConfig::default() };
    std::fs::create_dir(place.path("shuffled")).unwrap();
    for number in 0..CLIPS {
        let clip = |number| demo_data::clip(&config, 1, number).unwrap();
        let frames = Frames::new(64, 64, clip(number).frames.concat()).unwrap();
        let sound = Waveform::from_mono(clip((number + 5) % CLIPS).samples, config.rate_hz);
        let path = place.path(&format!("shuffled/{number:06}.mp4"));
        write_mp4(&path, &frames, 10, Some(&sound), "", false).unwrap();
    }
    // What is seen is as before.
    std::fs::copy(place.path("real/scenes.jsonl"), place.path("shuffled/scenes.jsonl")).unwrap();
    place
}

fn evaluate(place: &Workplace, more: &[&str]) -> Value {
    let always = ["evaluate", "--json", "--resamples", "50", "--quiet"];
    place.run(always.iter().chain(more)).success().json()
}

/// Value and ends of the interval of a measure.
fn metric(found: &Value, name: &str, of: &str) -> [f64; 3] {
    let metrics = found["metrics"].as_array().unwrap();
    let metric = metrics.iter().find(|metric| metric["name"] == name && metric["of"] == of);
    let metric = metric.unwrap_or_else(|| panic!("{name} of {of} in {found}"));
    assert!(metric["definition"].as_str().unwrap().contains("clips"), "{metric}");
    let interval = &metric["interval"];
    [&metric["value"], &interval["low"], &interval["high"]].map(|it| it.as_f64().unwrap())
}

fn value(found: &Value, name: &str, of: &str) -> f64 {
    metric(found, name, of)[0]
}

#[test]
fn synchrony_falls_when_sounds_are_exchanged_and_distances_do_not() {
    let place = workplace();
    let same = evaluate(&place, &["--real", "real", "--fake", "real"]);
    let shuffled = evaluate(&place, &["--real", "real", "--fake", "shuffled"]);
    let other = evaluate(&place, &["--real", "real", "--fake", "other"]);
    for (name, least_fall) in [("impact F1", 0.3), ("AV-Align of bends", 0.15), ("AV-Align", 0.03)]
    {
        let [own, low, high] = metric(&same, name, "fake");
        assert!(low <= own && own <= high && low < high, "{name}: {low} {own} {high}");
        assert_eq!(own, value(&same, name, "real"));
        // The program's own shuffling says the same as clips that are shuffled.
        for lower in [
            value(&shuffled, name, "fake"),
            value(&same, name, "real, shuffled sound"),
            value(&same, name, "real, noise as sound"),
        ] {
            assert!(lower < own - least_fall, "{name}: {lower} is not below {own}");
        }
        // Clips of other seeds are as good.
        let [_, low, high] = metric(&other, name, "fake");
        assert!(low < own + 0.1 && own - 0.1 < high, "{name}: {own} and {low} to {high}");
    }
    assert!(value(&same, "impact F1", "fake") > 0.9);
    for what in ["sound", "picture"] {
        for (kind, zero) in [("Fréchet", 1e-9), ("kernel", 0.0)] {
            let name = format!("{kind} distance of {what}");
            assert!(value(&same, &name, "fake from real") <= zero, "{name}");
            let distance = |found: &Value| metric(found, &name, "fake from real");
            // Single sounds and pictures are the same but for their coding.
            let [different, low, _] = distance(&other);
            assert!(distance(&shuffled)[0] < different, "{name}");
            let halves = value(&same, &name, "half of real from half");
            assert!(low < 3.0 * halves.abs() + 1.0, "{name}: {different} {halves}");
        }
    }
}

#[test]
fn copies_of_training_clips_are_found_out_and_a_report_is_written() {
    let place = workplace();
    std::fs::create_dir(place.path("copies")).unwrap();
    for number in 0..CLIPS {
        let name = format!("{number:06}.mp4");
        std::fs::copy(place.path("other").join(&name), place.path("copies").join(&name)).unwrap();
    }
    std::fs::write(place.path("copies/broken.mp4"), "no video").unwrap();
    let sets = ["--real", "real", "--fake", "copies", "--train", "other"];
    let report = [&sets[..], &["--out", "report", "--cache", "cache"]].concat();
    let found = evaluate(&place, &report);
    assert_eq!(found["fake"], CLIPS);
    let left_out = found["left_out"][0].as_str().unwrap();
    assert!(left_out.contains("broken.mp4"), "{left_out}");
    for what in ["picture", "sound"] {
        let name = format!("clips whose {what} is near a training clip");
        assert_eq!(value(&found, &name, "fake"), 1.0);
        let name = format!("distance of {what} to the nearest training clip");
        assert!(value(&found, &name, "fake") < 1e-6 && value(&found, &name, "real") > 0.01);
    }
    let page = std::fs::read_to_string(place.path("report/report.html")).unwrap();
    for words in ["Fréchet distance of sound", "scale factor 1", "broken.mp4", "32 clips"] {
        assert!(page.contains(words), "{words}");
    }
    for figure in ["synchrony", "delays", "nearest-pictures", "nearest-sounds"] {
        let svg = std::fs::read_to_string(place.path(&format!("report/{figure}.svg"))).unwrap();
        assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{figure}");
    }
    let written = std::fs::read_to_string(place.path("report/metrics.json")).unwrap();
    let written: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(written["metrics"], found["metrics"]);
    let again = ["evaluate"].iter().chain(&report);
    place.run(again).failure(2, &["report.html", "--force"]);
    // What was measured of the clean sets is kept, and gives the same on other numbers of threads.
    assert_eq!(place.path("cache").read_dir().unwrap().count(), 2);
    let threads = [&sets[..], &["--cache", "cache", "--threads", "1"]].concat();
    assert_eq!(evaluate(&place, &threads)["metrics"], found["metrics"]);
    // The text names each definition.
    let text = place.run(["evaluate"].iter().chain(&sets)).success();
    assert!(text.stdout.contains("95 % interval") && text.stdout.contains("librosa"));
    assert!(text.stderr.contains("broken.mp4"), "{}", text.stderr);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let place = Workplace::new("mmdiffusion");
    place
        .run(["make-demo-data", "--out", "real", "--num", "2", "--frames", "6", "--size", "32"])
        .success();
    std::fs::create_dir(place.path("empty")).unwrap();
    std::fs::create_dir(place.path("one")).unwrap();
    std::fs::copy(place.path("real/000000.mp4"), place.path("one/a.mp4")).unwrap();
    place.write("cut.mp4", &std::fs::read(place.path("real/000000.mp4")).unwrap()[..300]);
    place.write("list.jsonl", "{\"path\": \"cut.mp4\"}\n{\"path\": \"missing.mp4\"}\n");
    let short = ["--frames", "6"];
    for (real, fake, more, words) in [
        ("real", "real", &[][..], &["0 of 2", "6 frames", "fewer than 16"][..]),
        ("real", "empty", &short, &["empty", "no clips"]),
        ("real", "missing", &short, &["missing"]),
        ("real", "one", &short, &["generated clips", "1 of 1", "at least 2"]),
        ("list.jsonl", "real", &short, &["real clips", "0 of 2", "cut.mp4"]),
        ("real", "real", &["--frames", "2"], &["2 frames", "at least 4"]),
        ("real", "real", &["--frames", "6", "--fps", "0"], &["0 a second"]),
        ("real", "real", &["--frames", "6", "--resamples", "0"], &["at least one resample"]),
        ("real", "real", &["--frames", "6", "--cache", "real/000000.mp4"], &["000000.mp4"]),
        ("real", "real", &["--frames", "6", "--out", "/proc/report"], &["/proc/report"]),
    ] {
        let always = ["evaluate", "--real", real, "--fake", fake];
        place.run(always.iter().chain(more)).failure(2, words);
    }
    // Two short clips are few, but enough.
    let found = evaluate(&place, &["--real", "real", "--fake", "real", "--frames", "6"]);
    assert_eq!(value(&found, "Fréchet distance of sound", "fake from real"), 0.0);
    assert!(!Path::new("/proc/report").exists());
}
