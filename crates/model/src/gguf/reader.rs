//! Reading the header of a file: metadata, and where each tensor lies. Nothing is taken on trust: a length is compared with the
//! bytes that are left before anything of that length is looked at, and nothing is allocated but for what was seen. Values and
//! names are borrowed from the bytes.

use std::{collections::HashMap, ops::Range};

use super::{
    TensorType,
    format::{ALIGNMENT, MAGIC, VERSION, foreign_type, number_size, types},
};

/// ggml's tensors have at most as many dimensions.
const MAX_DIMS: u32 = 4;

/// What a file says.
#[derive(Debug)]
pub(super) struct Gguf<'a> {
    metadata: HashMap<&'a str, Value<'a>>,
    tensors: HashMap<&'a str, Tensor<'a>>,
}

/// A value of the metadata.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    Array(Array<'a>),
}

/// An array of numbers or texts, whose elements were seen to be there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Array<'a> {
    kind: u32,
    len: usize,
    bytes: &'a [u8],
}

/// A tensor of the file.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    /// The dimensions, the innermost last.
    pub(super) shape: Vec<usize>,
    pub(super) kind: TensorType,
    pub(super) bytes: &'a [u8],
}

impl<'a> Gguf<'a> {
    /// Reads the header of a file of these bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take(MAGIC.len()).ok() != Some(MAGIC) {
            return Err("not a GGUF file: it does not begin with \"GGUF\"".into());
        }
        match cursor.u32()? {
            2 | VERSION => {}
            version if [2, VERSION].contains(&version.swap_bytes()) => {
                return Err("a GGUF file of big-endian numbers, this program reads little-endian ones".into());
            }
            version => return Err(format!("GGUF of version {version}, this program reads versions 2 and 3")),
        }
        let (n_tensors, n_keys) = (cursor.u64()?, cursor.u64()?);
        let mut metadata = HashMap::new();
        for _ in 0..n_keys {
            let key = cursor.text()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind).map_err(|reason| format!("`{key}`: {reason}"))?;
            if metadata.insert(key, value).is_some() {
                return Err(format!("it has `{key}` twice"));
            }
        }
        let mut tensors = HashMap::new();
        for _ in 0..n_tensors {
            let name = cursor.text()?;
            let described = cursor.tensor().map_err(|reason| format!("its tensor {name}: {reason}"))?;
            if tensors.insert(name, described).is_some() {
                return Err(format!("it has the tensor {name} twice"));
            }
        }
        let start = cursor.at.next_multiple_of(alignment(&metadata)?);
        let tensors = place(tensors, bytes, start, alignment(&metadata)?)?;
        Ok(Self { metadata, tensors })
    }

    /// A tensor by its name.
    pub(super) fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.tensors.get(name)
    }

    /// The names of all tensors.
    pub(super) fn tensor_names(&self) -> impl ExactSizeIterator<Item = &'a str> {
        self.tensors.keys().copied()
    }

    /// The types of the tensors.
    pub(super) fn tensor_types(&self) -> impl Iterator<Item = TensorType> {
        self.tensors.values().map(|tensor| tensor.kind)
    }

    /// The names of all keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.metadata.keys().copied()
    }

    /// The value of a key, as `read` has it; `None` where there is no such key.
    fn get<T>(&self, key: &str, what: &str, read: impl FnOnce(Value<'a>) -> Option<T>) -> Result<Option<T>, String> {
        let Some(&value) = self.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| format!("`{key}` is not {what}"))
    }

    /// The text of a key.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        self.get(key, "a text", |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        })
    }

    /// The truth of a key.
    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, String> {
        self.get(key, "true or false", |value| match value {
            Value::Bool(truth) => Some(truth),
            _ => None,
        })
    }

    /// The whole number of a key, that is not negative.
    pub(super) fn whole(&self, key: &str) -> Result<Option<usize>, String> {
        self.get(key, "a whole number", |value| match value {
            Value::Unsigned(n) => usize::try_from(n).ok(),
            Value::Signed(n) => usize::try_from(n).ok(),
            _ => None,
        })
    }

    /// The number of a key. An f32 is the shortest decimal number that it is nearest to: 1e-6, not 9.999999974752427e-7.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.get(key, "a number", |value| match value {
            Value::Unsigned(n) => Some(n as f64),
            Value::Signed(n) => Some(n as f64),
            Value::Float(x) => Some(x),
            _ => None,
        })
    }

    /// The texts of a key.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, String> {
        self.get(key, "an array of texts", |value| match value {
            Value::Array(array) => array.texts(),
            _ => None,
        })
    }

    /// The whole numbers of a key.
    pub(super) fn whole_numbers(&self, key: &str) -> Result<Option<Vec<i64>>, String> {
        self.get(key, "an array of whole numbers", |value| match value {
            Value::Array(array) => array.whole_numbers(),
            _ => None,
        })
    }
}

fn alignment(metadata: &HashMap<&str, Value<'_>>) -> Result<usize, String> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(&Value::Unsigned(n)) if n.is_power_of_two() && (8..=1 << 16).contains(&n) => Ok(n as usize),
        Some(_) => Err("`general.alignment` is not a power of two from 8 to 65536".into()),
    }
}

/// A tensor as the header describes it.
struct Described {
    shape: Vec<usize>,
    kind: TensorType,
    /// Where it begins, counted from the first tensor.
    offset: u64,
    len: usize,
}

/// The bytes of each tensor, which must be those of no other.
fn place<'a>(
    described: HashMap<&'a str, Described>,
    bytes: &'a [u8],
    start: usize,
    alignment: usize,
) -> Result<HashMap<&'a str, Tensor<'a>>, String> {
    let mut ranges: Vec<(Range<usize>, &str)> = Vec::new();
    let mut tensors = HashMap::new();
    for (name, Described { shape, kind, offset, len }) in described {
        let from = usize::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
        let range = from.and_then(|from| Some(from..from.checked_add(len)?));
        let Some((range, data)) = range.and_then(|range| Some((range.clone(), bytes.get(range)?))) else {
            return Err(format!("it ends before its tensor {name} does; it is truncated, or no GGUF file"));
        };
        if !offset.is_multiple_of(alignment as u64) {
            return Err(format!("its tensor {name} is not aligned to {alignment} bytes"));
        }
        ranges.push((range, name));
        tensors.insert(name, Tensor { shape, kind, bytes: data });
    }
    ranges.sort_by_key(|(range, _)| (range.start, range.end));
    for neighbours in ranges.windows(2) {
        if let [(a, one), (b, other)] = neighbours
            && a.end > b.start
        {
            return Err(format!("its tensors {one} and {other} lie on each other"));
        }
    }
    Ok(tensors)
}

/// A place in the bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The next bytes.
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or("it ends in its header; it is truncated, or no GGUF file")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length or a size.
    fn size(&mut self) -> Result<usize, String> {
        // What does not fit is longer than any file, which `take` refuses.
        Ok(usize::try_from(self.u64()?).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let len = self.size()?;
        std::str::from_utf8(self.take(len)?).map_err(|_| "a text of it is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value<'a>, String> {
        Ok(match kind {
            types::STRING => Value::Text(self.text()?),
            types::ARRAY => Value::Array(self.elements()?),
            _ => {
                let size = number_size(kind).ok_or_else(|| format!("a value of the unknown type {kind}"))?;
                number(kind, self.take(size)?).ok_or("a truth that is neither 0 nor 1")?
            }
        })
    }

    fn elements(&mut self) -> Result<Array<'a>, String> {
        let (kind, len) = (self.u32()?, self.size()?);
        let start = self.at;
        match (kind, number_size(kind)) {
            (_, Some(size)) => drop(self.take(len.saturating_mul(size))?),
            (types::STRING, None) => {
                for _ in 0..len {
                    self.text()?;
                }
            }
            _ => return Err(format!("an array of elements of type {kind}; this program reads numbers and texts")),
        }
        Ok(Array { kind, len, bytes: &self.bytes[start..self.at] })
    }

    fn tensor(&mut self) -> Result<Described, String> {
        let n_dims = self.u32()?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(format!("it has {n_dims} dimensions, and can have 1 to {MAX_DIMS}"));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            shape.push(self.size()?);
        }
        shape.reverse();
        let number = self.u32()?;
        let kind = TensorType::from_number(number)
            .ok_or_else(|| format!("it is {}; this program reads F32, F16, BF16 and Q8_0", foreign_type(number)))?;
        let (cols, outer) = shape.split_last().ok_or("it has no dimensions")?;
        let rows = outer.iter().try_fold(1usize, |rows, &dim| rows.checked_mul(dim));
        let len = rows.and_then(|rows| kind.bytes(rows, *cols));
        let len = len.ok_or_else(|| format!("no {} tensor has the shape {shape:?}", kind.name()))?;
        Ok(Described { shape, kind, offset: self.u64()?, len })
    }
}

impl<'a> Array<'a> {
    fn texts(self) -> Option<Vec<&'a str>> {
        if self.kind != types::STRING {
            return None;
        }
        let mut cursor = Cursor { bytes: self.bytes, at: 0 };
        (0..self.len).map(|_| cursor.text().ok()).collect()
    }

    fn whole_numbers(self) -> Option<Vec<i64>> {
        let numbers = self.bytes.chunks_exact(number_size(self.kind)?);
        let whole = |bytes| match number(self.kind, bytes)? {
            Value::Unsigned(n) => i64::try_from(n).ok(),
            Value::Signed(n) => Some(n),
            _ => None,
        };
        numbers.map(whole).collect()
    }
}

/// The number in some bytes, of a type and its size.
fn number(kind: u32, bytes: &[u8]) -> Option<Value<'_>> {
    let mut wide = [0; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    // The sign is that of the last byte that is there.
    let unused_bits = 8 * (8 - bytes.len() as u32);
    let signed = unsigned.checked_shl(unused_bits)?.cast_signed() >> unused_bits;
    Some(match kind {
        types::U8 | types::U16 | types::U32 | types::U64 => Value::Unsigned(unsigned),
        types::I8 | types::I16 | types::I32 | types::I64 => Value::Signed(signed),
        types::F32 => Value::Float(shortest(f32::from_bits(unsigned as u32))),
        types::F64 => Value::Float(f64::from_bits(unsigned)),
        types::BOOL if unsigned <= 1 => Value::Bool(unsigned == 1),
        _ => return None,
    })
}

/// The shortest decimal number that is nearest to an f32.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}
