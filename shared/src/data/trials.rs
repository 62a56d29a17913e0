//! Trial lists: which pairs of recordings to compare.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::lines::{Line, Lines};
use crate::Result;
use crate::limits::Limits;

/// A pair of recordings to compare, by their places in [`TrialList::recordings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The recording known to be of the speaker.
    pub enrolment: usize,
    /// The recording in question.
    pub test: usize,
    /// Whether both are of one speaker; `None` in a list without labels.
    pub target: Option<bool>,
}

/// A list of trials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrialList {
    /// Names of the recordings, each once, in the order in which they first come.
    pub recordings: Vec<String>,
    /// The trials in the order of the list.
    pub trials: Vec<Trial>,
}

/// The forms of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `1 a b`
    VoxCeleb,
    /// `a b target`
    Kaldi,
    /// `a b`
    Unlabelled,
}

impl Form {
    fn of(line: &Line<'_>) -> Result<Self> {
        match line.fields().as_slice() {
            [_, _, label] if kaldi_label(label).is_some() => Ok(Self::Kaldi),
            [label, _, _] if voxceleb_label(label).is_some() => Ok(Self::VoxCeleb),
            [_, _] => Ok(Self::Unlabelled),
            _ => Err(line.error("expected `0|1 a b`, `a b target|nontarget` or `a b`")),
        }
    }

    /// The names and the label of a line of this form.
    fn parse<'a>(self, line: &Line<'a>) -> Option<(&'a str, &'a str, Option<bool>)> {
        match (self, line.fields().as_slice()) {
            (Self::VoxCeleb, &[label, a, b]) => Some((a, b, Some(voxceleb_label(label)?))),
            (Self::Kaldi, &[a, b, label]) => Some((a, b, Some(kaldi_label(label)?))),
            (Self::Unlabelled, &[a, b]) => Some((a, b, None)),
            _ => None,
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::VoxCeleb => "`0|1 a b`",
            Self::Kaldi => "`a b target|nontarget`",
            Self::Unlabelled => "`a b`",
        }
    }
}

fn voxceleb_label(field: &str) -> Option<bool> {
    match field {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

fn kaldi_label(field: &str) -> Option<bool> {
    match field {
        "target" => Some(true),
        "nontarget" => Some(false),
        _ => None,
    }
}

impl TrialList {
    /// Reads a list, gzip-compressed or not, in VoxCeleb's form (`1 a b`, label first), Kaldi's
    /// (`a b target` or `nontarget`), or without labels (`a b`). The first line decides which.
    ///
    /// # Errors
    /// [`crate::Error::Parse`] with the line that has another form, also when there is none;
    /// [`crate::Error::Io`]; [`crate::Error::Limit`].
    pub fn read(path: &Path, limits: &Limits) -> Result<Self> {
        Self::parse(Lines::open(path, limits)?)
    }

    /// The names of the two recordings of each trial.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let name = |place: usize| self.recordings.get(place).map_or("", String::as_str);
        self.trials.iter().map(move |trial| (name(trial.enrolment), name(trial.test)))
    }

    /// The trials at the places `range`, with no more recordings than they need.
    pub fn part(&self, range: Range<usize>) -> Self {
        let mut part = Self::default();
        let mut places = HashMap::new();
        let trials = self.trials.iter().zip(self.pairs());
        for (trial, (a, b)) in trials.skip(range.start).take(range.len()) {
            let trial = Trial {
                enrolment: part.place(a, &mut places),
                test: part.place(b, &mut places),
                target: trial.target,
            };
            part.trials.push(trial);
        }
        part
    }

    /// SHA-256, in hexadecimal digits, of the names of all pairs in their order.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for (a, b) in self.pairs() {
            for name in [a, b] {
                hash.update(name.as_bytes());
                hash.update([0]);
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The place of the recording `name`, which is added if it is not there.
    fn place<'a>(&mut self, name: &'a str, places: &mut HashMap<&'a str, usize>) -> usize {
        *places.entry(name).or_insert_with(|| {
            self.recordings.push(name.to_owned());
            self.recordings.len() - 1
        })
    }

    fn parse(mut lines: Lines) -> Result<Self> {
        let mut list = Self::default();
        let mut places = HashMap::new();
        let mut form = None;
        while let Some(line) = lines.next()? {
            let (form, first_line) = match form {
                Some(known) => known,
                None => *form.insert((Form::of(&line)?, line.number)),
            };
            let (enrolment, test, target) = form.parse(&line).ok_or_else(|| {
                let form = form.description();
                line.error(format!("expected {form}, the form of line {first_line}"))
            })?;
            let mut place = |name: &str| match places.get(name) {
                Some(&place) => place,
                None => {
                    let place = list.recordings.len();
                    list.recordings.push(name.to_owned());
                    places.insert(name.to_owned(), place);
                    place
                }
            };
            let (enrolment, test) = (place(enrolment), place(test));
            list.trials.push(Trial { enrolment, test, target });
        }
        if list.trials.is_empty() {
            return Err(lines.error("the list has no trial"));
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn parse(bytes: &[u8]) -> Result<TrialList> {
        let bytes = Cursor::new(bytes.to_vec());
        TrialList::parse(Lines::new(bytes, Path::new("trials"), &Limits::default()))
    }

    #[test]
    fn the_three_forms() {
        let cases: [(&[u8], [Option<bool>; 2]); 5] = [
            (b"1 a b\n0 a c\n", [Some(true), Some(false)]),
            (b"\xef\xbb\xbf0\ta\tb\r\n\r\n1\ta\tc", [Some(false), Some(true)]),
            (b"a b nontarget\na c target\n", [Some(false), Some(true)]),
            (b"a b\na c\n", [None, None]),
            (b"1 b target\n1 c nontarget\n", [Some(true), Some(false)]),
        ];
        for (bytes, labels) in cases {
            let list = parse(bytes).unwrap();
            assert_eq!(list.recordings[1..], ["b", "c"]);
            let want = [(0, 1, labels[0]), (0, 2, labels[1])]
                .map(|(enrolment, test, target)| Trial { enrolment, test, target });
            assert_eq!(list.trials, want);
        }
    }

    #[test]
    fn tabs_allow_spaces_in_names() {
        let list = parse(b"1\tmy voice.wav\tmy other voice.wav\n").unwrap();
        assert_eq!(list.recordings, ["my voice.wav", "my other voice.wav"]);
    }

    #[test]
    fn faults_are_named_with_the_line() {
        for (bytes, reason) in [
            (b"".as_slice(), "trials:1: the list has no trial"),
            (b"\n \n", "the list has no trial"),
            (b"a\n", "trials:1: expected `0|1 a b`"),
            (b"2 a b\n", "trials:1: expected `0|1 a b`"),
            (b"1 a b\n\n0 a\n", "trials:3: expected `0|1 a b`, the form of line 1"),
            (b"1 a b\n2 a b\n", "trials:2: expected `0|1 a b`, the form of line 1"),
            (
                b"\na b target\na b maybe\n",
                "trials:3: expected `a b target|nontarget`, the form of line 2",
            ),
            (b"a b\n1 a b\n", "trials:2: expected `a b`, the form of line 1"),
            (b"a b\na \xff\n", "trials:2: is not UTF-8"),
        ] {
            let error = parse(bytes).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} / {reason}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(list) = parse(&bytes) {
                prop_assert!(list.trials.iter().all(|t| t.enrolment.max(t.test) < list.recordings.len()));
            }
        }

        #[test]
        fn what_is_written_is_read(
            pairs in proptest::collection::vec(("[a-z/.0-9]{1,8}", "[a-z/.0-9]{1,8}", any::<bool>()), 1..20)
        ) {
            let text: String = pairs.iter().map(|(a, b, t)| format!("{} {a} {b}\n", u8::from(*t))).collect();
            let list = parse(text.as_bytes()).unwrap();
            let back: Vec<_> = list
                .trials
                .iter()
                .map(|t| (list.recordings[t.enrolment].clone(), list.recordings[t.test].clone(), t.target.unwrap()))
                .collect();
            prop_assert_eq!(back, pairs);
        }
    }
}
