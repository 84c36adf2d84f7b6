//! Writing a file: a header, metadata, the tensors' descriptions, then their values, each aligned. Numbers are little-endian,
//! strings have their length in front.

use std::{
    io::{self, BufWriter, Write},
    path::Path,
};

use super::{
    GgufTensor,
    format::{ALIGNMENT, MAGIC, VERSION, types},
    tensor_type::BLOCK,
};
use crate::files::{FileError, atomic};

/// The elements of a tensor that are encoded at a time: whole blocks of every type.
const CHUNK: usize = 1024 * BLOCK;

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

/// Writes the file atomically, with one tensor at a time in memory beside the model.
///
/// # Errors
/// When the disk is full, or a tensor has a number that its type cannot hold.
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
    for tensor in tensors {
        put_string(&mut header, &tensor.stored.name);
        header.extend((tensor.stored.shape.len() as u32).to_le_bytes());
        // The innermost dimension comes first.
        for &dim in tensor.stored.shape.iter().rev() {
            header.extend((dim as u64).to_le_bytes());
        }
        header.extend(tensor.kind.number().to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    atomic::write_with(path, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(&header)?;
        let mut encoded = Vec::new();
        for tensor in tensors {
            for values in tensor.values().chunks(CHUNK) {
                encoded.clear();
                tensor.kind.encode(values, &mut encoded).map_err(|value| unfit(tensor, value))?;
                file.write_all(&encoded)?;
            }
            let bytes = tensor.bytes();
            file.write_all(&[0; ALIGNMENT][..bytes.next_multiple_of(ALIGNMENT) - bytes])?;
        }
        file.flush()
    })
}

fn unfit(tensor: &GgufTensor<'_>, value: f32) -> io::Error {
    let (name, kind) = (&tensor.stored.name, tensor.kind.name());
    io::Error::new(io::ErrorKind::InvalidInput, format!("{name} has a weight of {value}, which {kind} cannot hold"))
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
