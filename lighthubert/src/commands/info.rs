//! `lighthubert info`: what a model is.

use std::path::PathBuf;

use clap::Args;
use lighthubert::space::BUDGET_SAMPLES;
use lighthubert::{
    Features, HeadConfig, ModelCard, Network, RecogniserConfig, Sizes, Subnet, cost,
};
use serde::Serialize;
use shared::cli::Common;
use shared::report::Table;
use shared::report::format::count;

use super::model;

#[derive(Args)]
pub struct Options {
    /// Model: a file made by `lighthubert`, a published checkpoint (.pt), or a folder in Hugging Face's
    /// layout [default: the recogniser shipped with this program]
    model: Option<PathBuf>,
}

#[derive(Serialize)]
struct Outcome<'a> {
    model: String,
    /// Parameters in the file, prediction heads included.
    stored_parameters: u64,
    /// Subnets of the search space; none for one network.
    #[serde(skip_serializing_if = "Option::is_none")]
    subnets: Option<String>,
    networks: Vec<Described>,
    card: &'a ModelCard,
}

/// One network of the model.
#[derive(Serialize)]
struct Described {
    name: &'static str,
    subnet: Subnet,
    /// Counted as in the published results, see [`cost::parameters`].
    parameters: u64,
    /// Multiply-accumulates for 10 s of audio.
    macs_10s: u64,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let model = model::load_or_shipped(options.model.as_deref(), common)?;
    // Fails where the card describes another model than the tensors are.
    let network = model.network(None, &common.open()?)?;
    let mut subnets = None;
    let networks = match &model.card.sizes {
        Sizes::Network { config } => vec![Described {
            name: "network",
            subnet: config.subnet.clone(),
            parameters: cost::plain_parameters(config),
            macs_10s: cost::macs(config, BUDGET_SAMPLES),
        }],
        Sizes::Recogniser { config } => vec![Described {
            name: "recogniser",
            subnet: config.network.subnet.clone(),
            parameters: cost::plain_parameters(&config.network),
            macs_10s: cost::macs(&config.network, BUDGET_SAMPLES),
        }],
        Sizes::Supernet { config, space } => {
            subnets = space.map(|space| space.space().count().to_string());
            let mut named = vec![("default", model.default_subnet())];
            if let Some(space) = space.map(|space| space.space()) {
                named.extend([("max", space.largest()), ("min", space.smallest())]);
            }
            let describe = |(name, subnet): (&'static str, Subnet)| {
                let macs_10s = cost::macs(&config.network(&subnet)?, BUDGET_SAMPLES);
                Ok(Described {
                    name,
                    parameters: cost::parameters(config, &subnet),
                    macs_10s,
                    subnet,
                })
            };
            named.into_iter().map(describe).collect::<shared::Result<_>>()?
        }
    };
    let stored: usize = model.tensors.values().map(|tensor| tensor.elem_count()).sum();
    let outcome = Outcome {
        model: model::name(options.model.as_deref()),
        stored_parameters: stored as u64,
        subnets,
        networks,
        card: &model.card,
    };
    common.print(&outcome, outcome.text(&network))
}

impl Outcome<'_> {
    fn text(&self, network: &Network) -> String {
        let encoder = &network.config().encoder;
        let extractor = &encoder.extractor;
        let kind = match &self.card.sizes {
            Sizes::Network { .. } => "one network".to_owned(),
            Sizes::Recogniser { config } => recogniser(config),
            Sizes::Supernet { space, .. } => match (space, &self.subnets) {
                (Some(space), Some(subnets)) => {
                    format!("supernet of the space {space:?}, {subnets} subnets")
                }
                _ => "supernet of an unknown space".to_owned(),
            },
        };
        let front = format!(
            "{} convolutions of {} channels, a frame every {} samples, {:?} norms; signals {}",
            extractor.layers.len(),
            extractor.channels(),
            extractor.hop_samples(),
            extractor.mode,
            if encoder.normalise { "are normalised" } else { "stay as they are" }
        );
        let mut table = Table::new(["network", "layers", "width", "parameters", "GMAC for 10 s"]);
        for network in &self.networks {
            table.row([
                network.name.to_owned(),
                network.subnet.depth().to_string(),
                network.subnet.embed_dim().to_string(),
                count(network.parameters),
                format!("{:.1}", 1e-9 * network.macs_10s as f64),
            ]);
        }
        let hash = self.card.seal.as_ref().map_or("-", |seal| &seal.tensors_sha256);
        format!(
            "model      {}\nkind       {kind}\nstored     {} parameters\nextractor  {front}\ntensors    \
             SHA-256 {hash}\n\n{}",
            self.model,
            count(self.stored_parameters),
            table.to_string().trim_end()
        )
    }
}

fn recogniser(config: &RecogniserConfig) -> String {
    let head = match config.head {
        HeadConfig::Linear => "a linear layer".to_owned(),
        HeadConfig::Recurrent { hidden, layers, .. } => {
            format!("{layers} bidirectional LSTMs of {hidden}")
        }
    };
    let features = match config.features {
        Features::Last => "the last layer",
        Features::Mixture => "all layers",
    };
    let symbols = config.vocabulary.symbols();
    let shown = symbols.iter().take(40).map(String::as_str).collect::<Vec<_>>().join(" ");
    let more = if symbols.len() > 40 { " ..." } else { "" };
    format!("recogniser: {head} on {features}\nclasses    {}: {shown}{more}", symbols.len())
}
