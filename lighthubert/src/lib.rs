//! LightHuBERT (Wang et al., Interspeech 2022): the once-for-all speech encoder.
//!
//! A [`Supernet`] holds the weights of all networks of a [`SearchSpace`]; a [`Subnet`] says which
//! part of them is active. [`Supernet::materialise`] leaves a plain [`Network`], which turns speech
//! into a vector for every 20 ms.

pub mod captions;
pub mod comparison;
pub mod config;
pub mod conv_layers;
pub mod cost;
pub mod decode;
pub mod extractor;
pub mod feature_file;
pub mod heads;
pub mod hugging_face;
pub mod language_model;
pub mod masking;
pub mod model_file;
pub mod network;
pub mod padding;
pub mod positional;
pub mod published;
pub mod recogniser;
pub mod recording;
pub mod score_report;
pub mod signal;
pub mod space;
pub mod speech_encoder;
pub mod subnet;
pub mod supernet;
#[cfg(test)]
mod tiny;
pub mod training;
pub mod transcriber;
pub mod transformer;
pub mod vocabulary;

pub use config::{EncoderConfig, NetworkConfig, RATE_HZ, SupernetConfig};
pub use model_file::{ModelCard, ModelFile, Sizes};
pub use network::{Conditions, Encoded, Network};
pub use padding::PaddingRule;
pub use recogniser::{Features, HeadConfig, Recogniser, RecogniserConfig};
pub use space::{Budget, SearchSpace, SpaceName};
pub use speech_encoder::{ChunkConfig, Layers, Output, SpeechEncoder};
pub use subnet::{LayerShape, Subnet, Window};
pub use supernet::Supernet;
pub use transcriber::{Decoder, DecodingConfig, Transcriber, Transcription};
pub use vocabulary::Vocabulary;
