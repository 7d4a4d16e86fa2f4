#![no_main]

semantic_search_native_fuzz::libfuzzer!("tokenizer");
