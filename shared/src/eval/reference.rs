//! Values of other implementations to compare with; `reference.json` says how they came about.

use serde::Deserialize;

use super::Features;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

/// Two sets of features and their distances by scipy and scikit-learn.
#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    a: Vec<Vec<f64>>,
    b: Vec<Vec<f64>>,
    pub frechet: f64,
    pub kernel: f64,
}

impl Case {
    pub fn features(&self) -> [Features; 2] {
        [&self.a, &self.b].map(|rows| Features::new(&self.name, rows).unwrap())
    }
}

pub fn cases() -> Vec<Case> {
    let reference: Reference = serde_json::from_str(include_str!("reference.json")).unwrap();
    assert!(reference.cases.len() > 3);
    reference.cases
}
