//! EfficientTDNN (Wang et al., IEEE/ACM TASLP 30, 2022): the speaker-verification supernet.
//!
//! Samples become normalised log-mel bands ([`Frontend`]), a network turns these into an embedding
//! ([`Subnet`]; [`Supernet`] holds all networks of the search space at once), and the cosine of two
//! embeddings tells how alike two voices are ([`Embedder`], [`ModelFile`]).

pub mod architecture;
pub mod batch;
pub mod book;
pub mod cost;
pub mod dynamic;
pub mod embed;
pub mod embeddings;
mod ensemble;
pub mod frontend;
mod layers;
pub mod loss;
pub mod model_file;
pub mod published;
mod recalibrate;
pub mod score;
pub mod score_file;
pub mod subnet;
pub mod supernet;
pub mod training;
mod verifier;

pub use architecture::{Architecture, NetworkConfig};
pub use embed::{Embedder, WindowConfig};
pub use frontend::{Frontend, FrontendConfig};
pub use loss::{Objective, SpeakerClassifier};
pub use model_file::{ModelCard, ModelFile};
pub use recalibrate::recalibrate;
pub use subnet::Subnet;
pub use supernet::Supernet;
pub use verifier::{Verifier, Voice};
