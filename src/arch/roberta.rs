//! `RoBERTa` and XLM-`RoBERTa`: multilingual-e5, bge-m3, arctic-embed-l-v2, paraphrase-multilingual, codebert, unixcoder; the reranker
//! bge-reranker-v2-m3.
//!
//! BERT whose positions are numbered from `pad_token_id + 1`, and count only tokens that are not padding.
//!
//! - Papers: <https://arxiv.org/abs/1907.11692>, <https://arxiv.org/abs/1911.02116>
//! - Reference: `transformers`, `models/roberta/modeling_roberta.py`, `models/xlm_roberta/modeling_xlm_roberta.py`

use std::sync::Arc;

use super::bert::Bert;
use super::{Architecture, Head};
use crate::graph::{Activation, Numbering};

pub const ROBERTA: Architecture = Architecture {
    model_types: &["roberta", "xlm-roberta", "camembert"],
    recognises: |_| true,
    read: |settings| {
        let padding = settings.integer(&["pad_token_id"], 0)?;
        let bert = Bert::read(settings, Numbering::NotPadding { padding }, HEAD)?;
        Ok(Arc::new(bert))
    },
};

const HEAD: Head = Head::of("classifier.dense", Activation::Tanh, "classifier.out_proj");
