//! Mutations that know what bytes mean, so that most of what comes out gets past the first parser. Equal seeds give
//! equal mutations.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

/// How a target reads its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Whatever they are.
    Bytes,
    /// Texts, most of them JSON, with [`SEPARATOR`] between them.
    Sections,
    /// Eight bytes of length, a header in JSON of that length, data.
    Safetensors,
}

/// Between two sections.
pub const SEPARATOR: &[u8] = b"\n---\n";

/// Longest input that a mutation makes much longer.
const GROWING_BYTES: usize = 1 << 20;

/// Changes a few places of `data`.
pub fn mutate(format: Format, data: &[u8], seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut data = data.to_vec();
    for _ in 0..random.random_range(1..=4) {
        data = match format {
            Format::Bytes => mutate_bytes(data, &mut random),
            Format::Sections => {
                let mut sections = split(&data);
                let index = random.random_range(0..sections.len());
                sections[index] = mutate_text(&sections[index], &mut random);
                sections.join(SEPARATOR)
            }
            Format::Safetensors => mutate_safetensors(data, &mut random),
        };
    }
    data
}

/// The sections of `data`, at least one.
pub fn split(data: &[u8]) -> Vec<Vec<u8>> {
    let mut sections = Vec::new();
    let mut rest = data;
    while let Some(end) = rest
        .windows(SEPARATOR.len())
        .position(|part| part == SEPARATOR)
    {
        sections.push(rest[..end].to_vec());
        rest = &rest[end + SEPARATOR.len()..];
    }
    sections.push(rest.to_vec());
    sections
}

fn mutate_text(text: &[u8], random: &mut StdRng) -> Vec<u8> {
    match serde_json::from_slice(text) {
        Ok(json) if random.random_ratio(9, 10) => {
            mutate_json(json, random).to_string().into_bytes()
        }
        _ => mutate_bytes(text.to_vec(), random),
    }
}

fn mutate_safetensors(data: Vec<u8>, random: &mut StdRng) -> Vec<u8> {
    let header = data.first_chunk().and_then(|length| {
        let end = usize::try_from(u64::from_le_bytes(*length))
            .ok()?
            .checked_add(8)?;
        Some((data.get(8..end)?, data.get(end..)?))
    });
    match header {
        Some((header, rest)) if random.random_ratio(9, 10) => {
            let header = mutate_text(header, random);
            let length = (header.len() as u64).to_le_bytes();
            [&length, &*header, rest].concat()
        }
        _ => mutate_bytes(data, random),
    }
}

fn mutate_bytes(mut data: Vec<u8>, random: &mut StdRng) -> Vec<u8> {
    if data.is_empty() {
        return vec![random.random()];
    }
    let place = random.random_range(0..data.len());
    let end = random.random_range(place..data.len().min(place + 64)) + 1;
    match random.random_range(0..7) {
        0 => data[place] ^= 1 << random.random_range(0..8),
        1 => data[place] = random.random(),
        2 => data.insert(place, random.random()),
        3 => drop(data.drain(place..end)),
        4 => data.truncate(place),
        5 => {
            let part = data[place..end].to_vec();
            data.splice(place..place, part);
        }
        _ => {
            let special = [0, 1, 0x7f, 0x80, 0xff];
            data[place..end].fill(*special.choose(random).expect("there are five"));
        }
    }
    data
}

/// Changes one node of the tree.
fn mutate_json(mut json: Value, random: &mut StdRng) -> Value {
    let other = {
        let chosen = random.random_range(0..count(&json));
        nth(&mut json, &mut { chosen }).clone()
    };
    let chosen = random.random_range(0..count(&json));
    let may_grow = json.to_string().len() < GROWING_BYTES;
    let node = nth(&mut json, &mut { chosen });
    if random.random_ratio(1, 4) {
        *node = special(random);
        return json;
    }
    match node {
        Value::Array(items) if !items.is_empty() => {
            let place = random.random_range(0..items.len());
            match random.random_range(0..5) {
                0 => drop(items.remove(place)),
                1 => items.insert(place, items[place].clone()),
                2 => items.truncate(place),
                3 if may_grow => {
                    *items = vec![items.clone(); random.random_range(2..40)].concat();
                }
                _ => items[place] = other,
            }
        }
        Value::Object(entries) if !entries.is_empty() => mutate_entries(entries, other, random),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let changes = [
                -number,
                number + 1.0,
                number - 1.0,
                number * 2.0,
                number / 2.0,
            ];
            let result = *changes.choose(random).expect("there are five");
            *node = if result.fract() == 0.0 && result.abs() < 1e15 {
                json!(result as i64)
            } else {
                json!(result)
            };
        }
        Value::String(text) => {
            let bytes = mutate_bytes(std::mem::take(text).into_bytes(), random);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        Value::Bool(flag) => *flag = !*flag,
        _ => *node = other,
    }
    json
}

fn mutate_entries(entries: &mut Map<String, Value>, other: Value, random: &mut StdRng) {
    let keys: Vec<String> = entries.keys().cloned().collect();
    let key = keys
        .choose(random)
        .expect("the object is not empty")
        .clone();
    match random.random_range(0..3) {
        0 => drop(entries.remove(&key)),
        1 => {
            let value = entries.remove(&key).unwrap_or_default();
            let renamed =
                String::from_utf8_lossy(&mutate_bytes(key.into_bytes(), random)).into_owned();
            entries.insert(renamed, value);
        }
        _ => drop(entries.insert(key, other)),
    }
}

/// Values at which programs go wrong.
fn special(random: &mut StdRng) -> Value {
    let values = [
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(0.5),
        json!(i32::MAX),
        json!(1_u64 << 31),
        json!(u32::MAX),
        json!(1_u64 << 53),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e308),
        json!(1e-308),
        json!(""),
        json!(".."),
        json!("/"),
        json!("\u{0}"),
        json!("\u{feff}İ\u{301}"),
        json!("a".repeat(5000)),
        json!([]),
        json!({}),
        (0..100).fold(json!([]), |inner, _| json!([inner])),
    ];
    values.choose(random).expect("there are some").clone()
}

/// Nodes of the tree.
fn count(json: &Value) -> usize {
    1 + match json {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(entries) => entries.values().map(count).sum(),
        _ => 0,
    }
}

/// The node of this index, counted from the root down; there must be so many.
fn nth<'a>(json: &'a mut Value, index: &mut usize) -> &'a mut Value {
    if *index == 0 {
        return json;
    }
    *index -= 1;
    let children: Box<dyn Iterator<Item = &mut Value>> = match json {
        Value::Array(items) => Box::new(items.iter_mut()),
        Value::Object(entries) => Box::new(entries.values_mut()),
        _ => unreachable!("a leaf has no other node below it"),
    };
    for child in children {
        let nodes = count(child);
        if *index < nodes {
            return nth(child, index);
        }
        *index -= nodes;
    }
    unreachable!("the index is below the number of nodes")
}
