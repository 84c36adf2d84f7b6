//! Documents in a file of JSON lines.

use std::{
    fmt,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{CorpusError, Place};

/// The longest line. What is longer is hardly a file of lines, and would fill the memory.
const MAX_LINE_BYTES: u64 = 1 << 28;

/// How many keys of a line without a text are named.
const NAMED_KEYS: usize = 8;

/// The texts of a file of JSON lines.
pub(super) struct JsonLines {
    path: PathBuf,
    reader: BufReader<Box<dyn Read + Send>>,
    text_key: String,
    /// The number of the last line that was read, from 1.
    line: u64,
}

impl JsonLines {
    pub(super) fn new(path: PathBuf, bytes: Box<dyn Read + Send>, text_key: &str) -> Self {
        Self { path, reader: BufReader::new(bytes), text_key: text_key.to_owned(), line: 0 }
    }

    /// The text of the next line that has one; `None` at the end of the file.
    pub(super) fn next_text(&mut self) -> Result<Option<String>, CorpusError> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut self.reader)
                .take(MAX_LINE_BYTES)
                .read_until(b'\n', &mut line)
                .map_err(CorpusError::unreadable(&self.path))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if read as u64 == MAX_LINE_BYTES && line.last() != Some(&b'\n') {
                return Err(self.bad(format!("it is longer than {} MiB", MAX_LINE_BYTES >> 20)));
            }
            let mut json = line.as_slice();
            if self.line == 1 {
                json = json.strip_prefix("\u{feff}".as_bytes()).unwrap_or(json);
            }
            if json.trim_ascii().is_empty() {
                continue;
            }
            match self.text_of(json)? {
                Some(text) if !text.is_empty() => return Ok(Some(text)),
                _ => {}
            }
        }
    }

    /// The text of a line; `None` where it is null.
    fn text_of(&self, json: &[u8]) -> Result<Option<String>, CorpusError> {
        let key = &self.text_key;
        let mut parser = serde_json::Deserializer::from_slice(json);
        let found = TextOf(key).deserialize(&mut parser).and_then(|found| parser.end().map(|()| found));
        match found.map_err(|error| self.bad(format!("it is no JSON object ({error})")))? {
            Ok(Value::String(text)) => Ok(Some(text)),
            Ok(Value::Null) => Ok(None),
            Ok(other) => Err(self.bad(format!("its \"{key}\" is {}, not a string", kind(&other)))),
            Err(keys) => Err(self.bad(format!(
                "it has no \"{key}\"{}; name the key of the text by --text-key (data.text_key)",
                if keys.is_empty() { String::new() } else { format!(", but \"{}\"", keys.join("\", \"")) }
            ))),
        }
    }

    fn bad(&self, reason: String) -> CorpusError {
        CorpusError::BadRecord { path: self.path.clone(), place: Place::Line(self.line), reason }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Reads the value of one key of an object, and none of the others: the keys instead, where it is not there.
struct TextOf<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for TextOf<'_> {
    type Value = Result<Value, Vec<String>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextOf<'_> {
    type Value = Result<Value, Vec<String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Err(Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                found = Ok(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
                if let Err(keys) = &mut found
                    && keys.len() < NAMED_KEYS
                {
                    keys.push(key);
                }
            }
        }
        Ok(found)
    }
}
