//! candle as a peer: the protocol of `../protocol.mjs` around `candle-transformers`.
//!
//! Texts are sorted by length and run 32 at a time, padded to the longest, as candle's own example does it.

use std::collections::HashMap;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::nomic_bert::{l2_normalize, mean_pooling};
use candle_transformers::models::{bert, nomic_bert};
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{PaddingParams, Tokenizer, TruncationParams};

const BATCH_SIZE: usize = 32;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Setup {
    model: PathBuf,
    texts: PathBuf,
    pooling: String,
    max_tokens: usize,
}

#[derive(Deserialize)]
struct Request {
    want: String,
    texts: String,
    #[serde(default)]
    from: usize,
    to: Option<usize>,
}

enum Encoder {
    Bert(bert::BertModel),
    NomicBert(nomic_bert::NomicBertModel),
}

struct Peer {
    tokenizer: Tokenizer,
    encoder: Encoder,
    first_token: bool,
}

impl Peer {
    fn load(setup: &Setup) -> Result<Self> {
        let mut tokenizer = Tokenizer::from_file(setup.model.join("tokenizer.json"))
            .map_err(|error| anyhow!(error))?;
        let truncation = TruncationParams {
            max_length: setup.max_tokens,
            ..TruncationParams::default()
        };
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(|error| anyhow!(error))?
            .with_padding(Some(PaddingParams::default()));
        let config: Value =
            serde_json::from_slice(&std::fs::read(setup.model.join("config.json"))?)?;
        let weights = std::fs::read(setup.model.join("model.safetensors"))?;
        let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)?;
        let encoder = match config["model_type"].as_str() {
            Some("bert") => Encoder::Bert(bert::BertModel::load(
                weights,
                &serde_json::from_value(config)?,
            )?),
            Some("nomic_bert") => Encoder::NomicBert(nomic_bert::NomicBertModel::load(
                weights,
                &serde_json::from_value(config)?,
            )?),
            other => bail!("model type {other:?}"),
        };
        Ok(Self {
            tokenizer,
            encoder,
            first_token: setup.pooling == "cls",
        })
    }

    fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| std::cmp::Reverse(texts[text].len()));
        let mut vectors = vec![Vec::new(); texts.len()];
        for batch in order.chunks(BATCH_SIZE) {
            let inputs: Vec<&str> = batch.iter().map(|&text| texts[text].as_str()).collect();
            for (&text, row) in batch.iter().zip(self.forward(inputs)?.to_vec2()?) {
                vectors[text] = row;
            }
        }
        Ok(vectors)
    }

    /// Unit vectors `[texts, width]`.
    fn forward(&self, texts: Vec<&str>) -> Result<Tensor> {
        let encoded = self
            .tokenizer
            .encode_batch(texts, true)
            .map_err(|error| anyhow!(error))?;
        let ids: Vec<&[u32]> = encoded.iter().map(|text| text.get_ids()).collect();
        let mask: Vec<&[u32]> = encoded
            .iter()
            .map(|text| text.get_attention_mask())
            .collect();
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let mask = Tensor::new(mask, &Device::Cpu)?;
        let states = match &self.encoder {
            Encoder::Bert(model) => model.forward(&ids, &ids.zeros_like()?, Some(&mask))?,
            Encoder::NomicBert(model) => model.forward(&ids, None, Some(&mask))?,
        };
        let pooled = if self.first_token {
            states.i((.., 0))?.contiguous()?
        } else {
            mean_pooling(&states, &mask)?
        };
        Ok(l2_normalize(&pooled)?)
    }

    fn answer(&self, want: &str, texts: &[String]) -> Result<Value> {
        Ok(match want {
            "vectors" => json!(self.embed(texts)?),
            "seconds" => json!({ "wall": self.seconds(texts)? }),
            "latencies" => {
                let each = texts.chunks(1).map(|text| self.seconds(text));
                json!(each.collect::<Result<Vec<_>>>()?)
            }
            other => json!({ "failed": format!("candle does not know {other}") }),
        })
    }

    fn seconds(&self, texts: &[String]) -> Result<f64> {
        let start = Instant::now();
        self.embed(texts)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

fn say(value: &Value) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

fn main() -> Result<()> {
    let setup: Setup = serde_json::from_str(&std::env::args().nth(1).context("no setup")?)?;
    let lists: HashMap<String, Value> = serde_json::from_slice(&std::fs::read(&setup.texts)?)?;
    let first: String = serde_json::from_value(lists["first"].clone())?;
    // The first vector belongs to a cold start.
    let peer = match Peer::load(&setup).and_then(|peer| peer.embed(&[first]).map(|_| peer)) {
        Ok(peer) => peer,
        Err(error) => return say(&json!({ "refused": error.to_string() })),
    };
    say(&json!({ "name": "candle 0.11.1", "device": "cpu" }))?;
    for line in stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let texts: Vec<String> = serde_json::from_value(lists[&request.texts].clone())?;
        let to = request.to.unwrap_or(texts.len()).min(texts.len());
        say(&peer.answer(&request.want, &texts[request.from..to])?)?;
    }
    Ok(())
}
