//! What both directions share of the format: its first bytes, the numbers of the types of metadata, and the names of the types
//! of tensors.

/// The first bytes of a file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// The version that is written. Version 2 has the same bytes behind this number; in version 1 lengths have 32 bits.
pub(super) const VERSION: u32 = 3;
/// Where tensors begin, unless `general.alignment` says otherwise.
pub(super) const ALIGNMENT: usize = 32;

/// The numbers of the types of metadata.
pub(super) mod types {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STRING: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}

/// The bytes of a number of this type; `None` for what is no number.
pub(super) fn number_size(kind: u32) -> Option<usize> {
    match kind {
        types::U8 | types::I8 | types::BOOL => Some(1),
        types::U16 | types::I16 => Some(2),
        types::U32 | types::I32 | types::F32 => Some(4),
        types::U64 | types::I64 | types::F64 => Some(8),
        _ => None,
    }
}

/// The names of ggml's types of tensors that this program does not read, by number, to tell what a file has.
const FOREIGN_TYPES: &[(u32, &str)] = &[
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// What a type of tensors that this program does not read is called.
pub(super) fn foreign_type(number: u32) -> String {
    let known = FOREIGN_TYPES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("of the unknown type {number}"), |(_, name)| (*name).to_owned())
}
