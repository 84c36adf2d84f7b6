//! The bytes of a GGUF file, version 3: a header, metadata, the tensors' descriptions, then their values, each aligned.
//! Numbers are little-endian, strings have their length in front.

use std::{
    io::{BufWriter, Write},
    path::Path,
};

use super::GgufTensor;
use crate::files::{FileError, atomic};

const MAGIC: &[u8] = b"GGUF";
/// Version 2, which candle writes, has the same bytes behind this number.
const VERSION: u32 = 3;
/// Where tensors begin: the format's default of `general.alignment`.
const ALIGNMENT: usize = 32;
/// The type of a tensor of f32.
const F32_TENSOR: u32 = 0;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum GgufValue {
    U32(u32),
    F32(f32),
    Bool(bool),
    String(String),
    I32s(Vec<i32>),
    Strings(Vec<String>),
}

/// The numbers of the types of values.
mod types {
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
}

/// Writes the file atomically.
///
/// # Errors
/// When the disk is full.
pub(super) fn write(
    path: &Path,
    metadata: &[(String, GgufValue)],
    tensors: &[GgufTensor<'_>],
) -> Result<(), FileError> {
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut header, key);
        put_value(&mut header, value);
    }
    let mut offset = 0;
    for GgufTensor { stored, .. } in tensors {
        put_string(&mut header, &stored.name);
        header.extend((stored.shape.len() as u32).to_le_bytes());
        // The innermost dimension comes first.
        for &dim in stored.shape.iter().rev() {
            header.extend((dim as u64).to_le_bytes());
        }
        header.extend(F32_TENSOR.to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        let bytes = size_of::<f32>() * stored.shape.iter().product::<usize>();
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    atomic::write_with(path, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(&header)?;
        for tensor in tensors {
            let values = tensor.values();
            for value in values.iter() {
                file.write_all(&value.to_le_bytes())?;
            }
            let bytes = size_of_val(&*values);
            file.write_all(&[0; ALIGNMENT][..bytes.next_multiple_of(ALIGNMENT) - bytes])?;
        }
        file.flush()
    })
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &GgufValue) {
    let mut put_type = |kind: u32| out.extend(kind.to_le_bytes());
    match value {
        GgufValue::U32(number) => {
            put_type(types::U32);
            out.extend(number.to_le_bytes());
        }
        GgufValue::F32(number) => {
            put_type(types::F32);
            out.extend(number.to_le_bytes());
        }
        GgufValue::Bool(truth) => {
            put_type(types::BOOL);
            out.push(u8::from(*truth));
        }
        GgufValue::String(text) => {
            put_type(types::STRING);
            put_string(out, text);
        }
        GgufValue::I32s(numbers) => {
            put_type(types::ARRAY);
            put_type(types::I32);
            out.extend((numbers.len() as u64).to_le_bytes());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        GgufValue::Strings(texts) => {
            put_type(types::ARRAY);
            put_type(types::STRING);
            out.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| put_string(out, text));
        }
    }
}
