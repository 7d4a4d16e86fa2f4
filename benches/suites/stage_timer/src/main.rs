//! The stages of a call, each timed alone on one thread: tokenize, plan, forward, finish.
//!
//! `stage-timer --bench`, with the model folder in `BENCH_MODEL`, a JSON list of texts in `BENCH_TEXTS` and the token limit in
//! `BENCH_MAX_TOKENS`. The boundary to JavaScript is timed from there, by `../stages.mjs`, which runs this.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use semantic_search_native::Result;
use semantic_search_native::batch;
use semantic_search_native::checkpoint::Checkpoint;
use semantic_search_native::model_dir::ModelDir;
use semantic_search_native::options::{Backend, Options};
use semantic_search_native::runtime::stop::Stop;
use semantic_search_native::runtime::{self, Tokens};
use semantic_search_native::tokenizer::Tokenizer;
use semantic_search_native::vector::{Encoding, Finish};

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("the environment variable {name} is not set"))
}

fn main() -> Result<()> {
    let options = Options {
        backend: Backend::Onnx,
        max_tokens: Some(
            setting("BENCH_MAX_TOKENS")
                .parse()
                .expect("a number of tokens"),
        ),
        ..Options::default()
    };
    let texts = std::fs::read(setting("BENCH_TEXTS")).expect("the file of texts can be read");
    let texts: Vec<String> = serde_json::from_slice(&texts).expect("a list of texts");

    let dir = ModelDir::read(Path::new(&setting("BENCH_MODEL")), &options)?;
    let tokenizer = Tokenizer::load(&dir)?;
    let checkpoint = Checkpoint::open(&dir.path, &dir.weights)?;
    let graph = dir.encoder.record(&checkpoint)?.pooled(&dir.pooling);
    let (mut runtime, _) = runtime::load(&graph, &Arc::new(checkpoint), &options, 1)?;
    let mut worker = runtime.workers.remove(0)()?;

    let tokenize = || {
        let tokenized = texts.iter().map(|text| tokenizer.tokenize(text, false));
        tokenized.collect::<Result<Vec<_>>>()
    };
    let tokenized = tokenize()?;
    let lengths: Vec<usize> = tokenized.iter().map(|text| text.ids.len()).collect();
    let plan = || batch::plan(&lengths, runtime.limits);
    let batches: Vec<Vec<Tokens>> = plan()
        .iter()
        .map(|batch| {
            batch
                .iter()
                .map(|&text| tokenized[text].as_tokens())
                .collect()
        })
        .collect();
    let never = Arc::new(Stop::new());
    let mut forward = || {
        let rows = batches.iter().map(|batch| worker.forward(batch, &never));
        rows.collect::<Result<Vec<_>>>().map(|rows| rows.concat())
    };
    let vectors = forward()?;
    let finish = Finish {
        pooled: dir.full_dimension,
        matryoshka: dir.matryoshka,
        normalize: dir.normalize,
    };
    let mut report = Criterion::default()
        .configure_from_args()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    report.bench_function("tokenize", |bencher| bencher.iter(|| black_box(tokenize())));
    report.bench_function("plan", |bencher| bencher.iter(|| black_box(plan())));
    report.bench_function("forward", |bencher| bencher.iter(|| black_box(forward())));
    report.bench_function("finish", |bencher| {
        bencher.iter(|| black_box(finish.apply(vectors.clone(), Encoding::Float32)));
    });
    report.final_summary();
    Ok(())
}
