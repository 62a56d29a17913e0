//! `lighthubert score` and `lighthubert language-model` as a user runs them.

use serde_json::Value;
use tests::tool::Workplace;

const REFERENCES: &str = "path\tspeaker\tsplit\tseconds\ttext\n\
    a.wav\tann\teval\t1.5\tTHE CAT SAT\nb.wav\tbob\teval\t3\tIT'S A DOG\nc.wav\tbob\tdev\t3\tNO\n";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

#[test]
fn transcripts_in_different_forms_are_scored() {
    let place = Workplace::new("lighthubert");
    place.write("references.tsv", REFERENCES);
    place.write("found.trn", "The cat sat down. (a.wav)\nits a dog (b.wav)\n");
    let arguments = ["score", "--ref", "references.tsv", "--hyp", "found.trn", "--where"];
    let more = ["split=eval", "--normaliser", "librispeech", "--resamples", "50", "--json"];
    let run = place.run(arguments.iter().chain(&more).chain(&["--out", "report"])).success();
    let found = run.json();
    assert!((number(&found["wer"]["value"]) - 2.0 / 6.0).abs() < 1e-12, "{found}");
    let counts = ["hits", "substitutions", "deletions", "insertions"]
        .map(|kind| found["words"][kind].as_u64());
    assert_eq!(counts, [Some(5), Some(1), Some(0), Some(1)]);
    assert_eq!((&found["normaliser"], &found["utterances"]), (&"librispeech".into(), &2.into()));
    assert_eq!(found["resampled"], "speakers");
    for file in ["report.html", "metrics.json", "alignment.txt"] {
        assert!(place.path("report").join(file).is_file(), "{file}");
    }
    let again = place.run(arguments.iter().chain(&more).chain(&["--out", "report"]));
    again.failure(2, &["report.html", "--force"]);
    let text = place.run(arguments.iter().chain(&more[..1])).success().stdout;
    assert!(text.contains("word error rate") && text.contains("normaliser"), "{text}");
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let place = Workplace::new("lighthubert");
    place.write("references.tsv", REFERENCES);
    place.write("found", "a.wav THE CAT SAT\n");
    let score = ["score", "--ref", "references.tsv", "--hyp", "found"];
    place.run(score).failure(2, &["no hypothesis for 2 of the 3 references", "`b.wav`"]);
    let run = place.run(score.iter().chain(&["--missing-as-empty", "--json"])).success();
    assert_eq!(run.json()["missing"], 2);
    place.run(score.iter().chain(&["--normaliser", "other"])).failure(2, &["librispeech"]);
    place
        .run(score.iter().chain(&["--where", "place=x"]))
        .failure(2, &["no utterance has a column"]);
    place.write("found", "a.wav x\na.wav y\n");
    place.run(score).failure(2, &["found:2: utterance `a.wav` is there twice"]);
    place.run(["score", "--ref", "none", "--hyp", "found"]).failure(2, &["none"]);
}

#[test]
fn language_models_are_estimated_from_texts_and_transcripts() {
    let place = Workplace::new("lighthubert");
    place.write("texts.txt", "a b\n\na c\n");
    place.write("references.tsv", REFERENCES);
    let model = ["language-model", "--text", "texts.txt", "--order", "2", "--out", "words.arpa"];
    let found = place.run(model.iter().chain(&["--json"])).success().json();
    assert_eq!((&found["sentences"], found["ngrams"][0].as_u64()), (&2.into(), Some(6)));
    let arpa = std::fs::read_to_string(place.path("words.arpa")).unwrap();
    assert!(arpa.starts_with("\\data\\\nngram 1=6\n") && arpa.ends_with("\\end\\\n"), "{arpa}");
    place.run(model).failure(2, &["words.arpa", "--force"]);
    let characters = ["language-model", "--transcripts", "references.tsv", "--where", "split=dev"];
    let more = ["--unit", "characters", "--order", "2", "--out", "characters.arpa.gz", "--json"];
    let found = place.run(characters.iter().chain(&more)).success().json();
    // <unk>, <s>, </s>, N, O.
    assert_eq!(found["ngrams"][0], 5);
    place.run(["language-model", "--out", "x.arpa"]).failure(2, &["--text"]);
}
