//! The alphabet in which a byte-level vocabulary writes bytes: a character for each.

/// The byte that a character of GPT-2's alphabet stands for: printable characters of Latin-1 are themselves, and the others are
/// the characters from U+0100 on, in order.
pub(crate) fn byte_of(ch: char) -> Option<u8> {
    let code = u32::from(ch);
    if let Some(byte) = u8::try_from(code).ok().filter(|&byte| is_itself(byte)) {
        return Some(byte);
    }
    let place = code.checked_sub(0x100)? as usize;
    (0..=u8::MAX).filter(|&byte| !is_itself(byte)).nth(place)
}

/// The character that stands for a byte: the way back from [`byte_of`].
pub(crate) fn char_of(byte: u8) -> char {
    if is_itself(byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|&byte| !is_itself(byte)).count() as u32;
    char::from_u32(0x100 + place).unwrap_or(char::REPLACEMENT_CHARACTER) // all are characters
}

fn is_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..)
}

/// The text of some bytes, with those that are no UTF-8 as `\xE2`.
pub(super) fn text_of(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn the_alphabet_has_a_character_for_each_byte() {
        let alphabet = ByteLevel::alphabet();
        let bytes: BTreeSet<u8> = alphabet.iter().map(|&ch| byte_of(ch).unwrap()).collect();
        assert_eq!((alphabet.len(), bytes.len()), (256, 256));
        for (ch, byte) in [('a', b'a'), ('Ġ', b' '), ('Ċ', b'\n'), ('Ã', 0xC3), ('Ń', 0xAD)] {
            assert_eq!(byte_of(ch), Some(byte), "{ch}");
        }
        assert!((0..=u8::MAX).all(|byte| byte_of(char_of(byte)) == Some(byte)));
        assert!([' ', '\n', 'ń', '€'].iter().all(|&ch| byte_of(ch).is_none()));
    }

    #[test]
    fn parts_of_characters_are_shown_as_bytes() {
        assert_eq!(text_of("a€".as_bytes()), "a€");
        assert_eq!(text_of(&"a€b".as_bytes()[2..]), r"\x82\xACb");
        assert_eq!(text_of(&"€€".as_bytes()[..4]), r"€\xE2");
    }
}
