//! Cutting a text where the cut cannot change the ids of a byte-level BPE.
//!
//! GPT-2's pattern (`'s|'t|...| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`) splits a text into words, and BPE
//! works on each word alone. No word has white space after something else, so a word always begins where white space
//! follows a character that is none. The only look-ahead, `\s+(?!\S)`, looks from white space at the character after
//! it, so it never looks across such a place from the left; nothing looks back. So the words of the two sides are
//! the words of the whole, and a segment is white space (or nothing) followed by everything up to the next white space.

/// Cuts a text that comes in pieces into segments.
#[derive(Debug, Default)]
pub(super) struct Segmenter {
    /// The begin of a segment whose end is not known yet.
    begun: String,
}

impl Segmenter {
    /// Adds the next piece of the text and calls `on_segment` with every segment that it completes.
    pub(super) fn push<E>(&mut self, piece: &str, mut on_segment: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        let mut after_text = self.begun.chars().next_back().is_some_and(|ch| !ch.is_whitespace());
        let mut start = 0;
        for (at, ch) in piece.char_indices() {
            let is_space = ch.is_whitespace();
            if after_text && is_space {
                if self.begun.is_empty() {
                    on_segment(&piece[start..at])?;
                } else {
                    self.begun.push_str(&piece[start..at]);
                    on_segment(&self.begun)?;
                    self.begun.clear();
                }
                start = at;
            }
            after_text = !is_space;
        }
        self.begun.push_str(&piece[start..]);
        Ok(())
    }

    /// Ends the text and calls `on_segment` with the last segment, if there is one.
    pub(super) fn finish<E>(self, on_segment: impl FnOnce(&str) -> Result<(), E>) -> Result<(), E> {
        if self.begun.is_empty() { Ok(()) } else { on_segment(&self.begun) }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn segments(pieces: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        let mut keep = |segment: &str| {
            found.push(segment.to_owned());
            Ok::<(), Infallible>(())
        };
        let mut segmenter = Segmenter::default();
        for piece in pieces {
            segmenter.push(piece, &mut keep).unwrap();
        }
        segmenter.finish(&mut keep).unwrap();
        found
    }

    #[test]
    fn a_segment_is_white_space_and_the_text_up_to_the_next() {
        assert_eq!(segments(&["  a, b\r\n\n c\u{a0}d "]), ["  a,", " b", "\r\n\n c", "\u{a0}d", " "]);
        assert_eq!(segments(&[""]), [""; 0]);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[ \n\ta-cé🙂]{0,30}", cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
            let mut places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            places.push(text.len());
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&places)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let cut = segments(&pieces);
            prop_assert_eq!(cut.concat(), text.clone());
            prop_assert_eq!(cut, segments(&[&text]));
        }
    }
}
