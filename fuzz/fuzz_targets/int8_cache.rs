#![no_main]

semantic_search_native_fuzz::libfuzzer!("int8_cache");
