//! The format of TensorBoard's event files: the framing of TFRecord around `Event` messages of protocol buffers.
//!
//! Field numbers are those of `event.proto`, `summary.proto` and `tensor.proto` of TensorBoard. Nothing is known here but what is
//! written: the version, the start of a session, scalars and texts.

/// The version that a file begins with: readers drop what a restart made anew only from this one on.
const FILE_VERSION: &str = "brain.Event:2";
/// `DT_STRING` of `types.proto`.
const DT_STRING: u64 = 7;
/// `DATA_CLASS_TENSOR` of `summary.proto`.
const DATA_CLASS_TENSOR: u64 = 2;
/// `SessionLog.START` of `event.proto`.
const SESSION_START: u64 = 1;

/// A message of protocol buffers, to which fields are added.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    /// Seven bits a byte, the lowest first; all bytes but the last have their highest bit set.
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn key(self, field: u64, wire_type: u64) -> Self {
        self.varint(field << 3 | wire_type)
    }

    fn integer(self, field: u64, value: u64) -> Self {
        self.key(field, 0).varint(value)
    }

    fn double(self, field: u64, value: f64) -> Self {
        let mut message = self.key(field, 1);
        message.0.extend(value.to_le_bytes());
        message
    }

    fn float(self, field: u64, value: f32) -> Self {
        let mut message = self.key(field, 5);
        message.0.extend(value.to_le_bytes());
        message
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        let mut message = self.key(field, 2).varint(value.len() as u64);
        message.0.extend(value);
        message
    }

    fn message(self, field: u64, value: Self) -> Self {
        self.bytes(field, &value.0)
    }
}

/// An `Event` without content. A field that is 0 is absent.
fn event(wall_time: f64, step: u64) -> Message {
    let event = Message::default().double(1, wall_time);
    if step == 0 { event } else { event.integer(2, step) }
}

/// The first record of a file.
pub(super) fn version(wall_time: f64) -> Vec<u8> {
    record(&event(wall_time, 0).bytes(3, FILE_VERSION.as_bytes()).0)
}

/// The record that makes readers forget what they have read of `step` and later ones.
pub(super) fn session_start(wall_time: f64, step: u64) -> Vec<u8> {
    record(&event(wall_time, step).message(7, Message::default().integer(1, SESSION_START)).0)
}

/// Numbers of one step, by tag.
pub(super) fn scalars(wall_time: f64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
    let summary = values.iter().fold(Message::default(), |summary, (tag, value)| {
        summary.message(1, Message::default().bytes(1, tag.as_bytes()).float(2, *value as f32))
    });
    record(&event(wall_time, step).message(5, summary).0)
}

/// A text of one step, which TensorBoard shows as Markdown.
pub(super) fn text(wall_time: f64, step: u64, tag: &str, markdown: &str) -> Vec<u8> {
    let plugin = Message::default().bytes(1, b"text");
    let metadata = Message::default().message(1, plugin).integer(4, DATA_CLASS_TENSOR);
    // Of no dimensions: one string.
    let shape = Message::default();
    let tensor = Message::default().integer(1, DT_STRING).message(2, shape).bytes(8, markdown.as_bytes());
    let value = Message::default().bytes(1, tag.as_bytes()).message(8, tensor).message(9, metadata);
    record(&event(wall_time, step).message(5, Message::default().message(1, value)).0)
}

/// A record of a TFRecord file: its length, the check of the length, the bytes and the check of the bytes.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), bytes, &masked_crc(bytes)].concat()
}

/// CRC-32C, rotated and shifted as TFRecord has it, so that a check of bytes that hold checks is no special one.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by `scripts/check_tensorboard.py --bytes`, from the message classes of TensorBoard.
    #[test]
    fn records_are_those_of_tensorboards_own_classes() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(version(1.5)), VERSION);
        assert_eq!(hex(session_start(1.5, 0)), START);
        assert_eq!(hex(scalars(2.5, 300, &[("train/loss".into(), 1.25), ("train/lr".into(), 0.001)])), SCALARS);
        assert_eq!(hex(text(3.0, 7, "sample/text", "    Ä")), TEXT);
    }

    const VERSION: &str = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c";
    const START: &str = "0d000000000000003c37b83409000000000000f83f3a020801b718825c";
    const SCALARS: &str = "3200000000000000241956ec09000000000000044010ac022a240a110a0a747261696e2f6c6f7373150000a03f0a0f0a08747261696e2f6c72156f12833a8d537e08";
    const TEXT: &str = "36000000000000004f578cef09000000000000084010072a290a270a0b73616d706c652f74657874420c08071200420620202020c3844a0a0a060a047465787420025a15a778";
}
