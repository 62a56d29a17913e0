//! Captions for films: SubRip (`.srt`) and WebVTT (`.vtt`).

use crate::decode::TimedWord;

/// Silence after which a new caption begins.
const PAUSE_S: f64 = 0.8;
/// Most characters of a line, of which a caption has two.
const LINE_CHARACTERS: usize = 42;
/// Longest that a caption stays.
const LONGEST_S: f64 = 7.0;

/// Some words that are shown together.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    /// When they appear.
    pub start_s: f64,
    /// When they go.
    pub end_s: f64,
    /// One line or two.
    pub lines: Vec<String>,
}

/// The captions for `words`: at most two lines of 42 characters (a longer word stays whole), at most 7 s,
/// and none across a pause of 0.8 s.
pub fn captions(words: &[TimedWord]) -> Vec<Caption> {
    let mut captions: Vec<Caption> = vec![];
    for word in words {
        let fits = captions.last_mut().filter(|caption| {
            word.start_s - caption.end_s < PAUSE_S && word.end_s - caption.start_s <= LONGEST_S
        });
        let room = |line: &String| line.chars().count() + 1 + word.word.chars().count();
        match fits {
            Some(caption) if caption.lines.last().is_some_and(|it| room(it) <= LINE_CHARACTERS) => {
                if let Some(line) = caption.lines.last_mut() {
                    *line = format!("{line} {}", word.word);
                }
                caption.end_s = word.end_s;
            }
            Some(caption) if caption.lines.len() < 2 => {
                caption.lines.push(word.word.clone());
                caption.end_s = word.end_s;
            }
            _ => captions.push(Caption {
                start_s: word.start_s,
                end_s: word.end_s,
                lines: vec![word.word.clone()],
            }),
        }
    }
    captions
}

/// The captions as SubRip has them.
pub fn srt(captions: &[Caption]) -> String {
    let blocks = captions.iter().zip(1..).map(|(caption, number)| {
        let times = [caption.start_s, caption.end_s].map(|seconds| timestamp(seconds, ','));
        format!("{number}\n{} --> {}\n{}\n", times[0], times[1], caption.lines.join("\n"))
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// The captions as WebVTT has them.
pub fn vtt(captions: &[Caption]) -> String {
    let blocks = captions.iter().map(|caption| {
        let times = [caption.start_s, caption.end_s].map(|seconds| timestamp(seconds, '.'));
        let text = caption.lines.join("\n");
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        format!("\n{} --> {}\n{text}\n", times[0], times[1])
    });
    format!("WEBVTT\n{}", blocks.collect::<String>())
}

/// `hours:minutes:seconds` with thousandths after `separator`.
fn timestamp(seconds: f64, separator: char) -> String {
    let thousandths = (1000.0 * seconds.max(0.0)).round() as u64;
    let (rest, thousandths) = (thousandths / 1000, thousandths % 1000);
    let (rest, seconds) = (rest / 60, rest % 60);
    let (hours, minutes) = (rest / 60, rest % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}{separator}{thousandths:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(word: &str, start_s: f64, end_s: f64) -> TimedWord {
        TimedWord { word: word.into(), start_s, end_s, confidence: 0.5 }
    }

    #[test]
    fn times_are_rounded_to_thousandths_and_carry() {
        for (seconds, expected) in [
            (0.0, "00:00:00,000"),
            (0.9994, "00:00:00,999"),
            (0.9996, "00:00:01,000"),
            (59.9999, "00:01:00,000"),
            (3599.9996, "01:00:00,000"),
            (362_439.5, "100:40:39,500"),
            (-1.0, "00:00:00,000"),
        ] {
            assert_eq!(timestamp(seconds, ','), expected, "{seconds}");
        }
    }

    #[test]
    fn captions_break_at_pauses_full_lines_and_long_times() {
        let pause = [word("one", 0.5, 0.9), word("two", 1.0, 1.2), word("three", 2.1, 2.5)];
        let found = captions(&pause);
        assert_eq!(found.len(), 2);
        assert_eq!(
            srt(&found),
            "1\n00:00:00,500 --> 00:00:01,200\none two\n\n2\n00:00:02,100 --> 00:00:02,500\nthree\n"
        );
        assert_eq!(
            vtt(&found),
            "WEBVTT\n\n00:00:00.500 --> 00:00:01.200\none two\n\n00:00:02.100 --> 00:00:02.500\nthree\n"
        );
        let long: Vec<TimedWord> = (0..20)
            .map(|i| word("abcdefghij", 0.2 * f64::from(i), 0.2 * f64::from(i) + 0.2))
            .collect();
        let found = captions(&long);
        // Three words of ten characters in a line, six in a caption.
        let lines: Vec<usize> = found.iter().map(|caption| caption.lines.len()).collect();
        assert_eq!(lines, [2, 2, 2, 1]);
        assert!(found.iter().flat_map(|it| &it.lines).all(|line| line.len() <= 42));
        let slow: Vec<TimedWord> =
            (0..4).map(|i| word("a", 3.0 * f64::from(i), 3.0 * f64::from(i) + 2.9)).collect();
        assert_eq!(captions(&slow).len(), 2);
        assert_eq!(vtt(&captions(&[word("a<b&", 0.0, 1.0)])).lines().last(), Some("a&lt;b&amp;"));
        assert_eq!((srt(&[]), vtt(&[])), (String::new(), "WEBVTT\n".to_owned()));
    }
}
