//! Cutting a text that comes in pieces into documents.

use std::collections::VecDeque;

use tinygpt_model::tokenizer::Piece;

use super::{DOCUMENT_MARKER, Documents};

/// Cuts the text of a file into documents. Those without a character are left out.
#[derive(Debug)]
pub(super) struct Splitter {
    documents: Documents,
    /// The end of the text so far where a separator may have begun.
    held: String,
    /// Whether the present document has text.
    is_open: bool,
}

impl Splitter {
    pub(super) fn new(documents: Documents) -> Self {
        Self { documents, held: String::new(), is_open: false }
    }

    fn separator(&self) -> Option<&'static str> {
        match self.documents {
            Documents::None | Documents::File => None,
            Documents::Line => Some("\n"),
            Documents::Marker => Some(DOCUMENT_MARKER),
        }
    }

    /// Adds the next text of the file, and appends what is settled to `pieces`.
    pub(super) fn push(&mut self, text: String, pieces: &mut VecDeque<Piece>) {
        let Some(separator) = self.separator() else { return self.text(text, pieces) };
        let mut text = if self.held.is_empty() { text } else { std::mem::take(&mut self.held) + &text };
        let mut start = 0;
        for (at, _) in text.match_indices(separator) {
            let mut document = &text[start..at];
            if self.documents == Documents::Line {
                // Of a line break of Windows.
                document = document.strip_suffix('\r').unwrap_or(document);
            }
            if self.is_open || !document.is_empty() {
                pieces.push_back(Piece { text: document.to_owned(), ends_document: true });
                self.is_open = false;
            }
            start = at + separator.len();
        }
        let open = text.split_off(start);
        let settled = open.len() - held_bytes(&open, separator);
        self.held = open[settled..].to_owned();
        self.text(open[..settled].to_owned(), pieces);
    }

    /// Ends the file, and with it the document.
    pub(super) fn finish(&mut self, pieces: &mut VecDeque<Piece>) {
        let held = std::mem::take(&mut self.held);
        self.text(held, pieces);
        if self.is_open && self.documents != Documents::None {
            pieces.push_back(Piece { text: String::new(), ends_document: true });
        }
        self.is_open = false;
    }

    fn text(&mut self, text: String, pieces: &mut VecDeque<Piece>) {
        if !text.is_empty() {
            self.is_open = true;
            pieces.push_back(Piece { text, ends_document: false });
        }
    }
}

/// How many bytes at the end of a text may begin a separator, or the line break of Windows before one.
fn held_bytes(text: &str, separator: &str) -> usize {
    if separator == "\n" {
        return usize::from(text.ends_with('\r'));
    }
    (1..separator.len()).rev().find(|&n| text.ends_with(&separator[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documents of a text that comes in pieces of so many characters; the last is open where it has not ended.
    fn documents(by: Documents, text: &str, size: usize) -> (Vec<String>, String) {
        let (mut splitter, mut pieces) = (Splitter::new(by), VecDeque::new());
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(size) {
            splitter.push(piece.iter().collect(), &mut pieces);
        }
        splitter.finish(&mut pieces);
        let (mut ended, mut open) = (Vec::new(), String::new());
        for piece in pieces {
            open += &piece.text;
            if piece.ends_document {
                ended.push(std::mem::take(&mut open));
            }
        }
        (ended, open)
    }

    #[test]
    fn documents_end_where_they_should_wherever_the_pieces_are_cut() {
        let lines = "one\r\n\n\rtwo\r\r\n\nthree\r";
        let marked = "a<|endo\n<|endoftext|><|endoftext|>b<|<|endoftext|>\nc";
        for size in 1..20 {
            assert_eq!(documents(Documents::None, lines, size), (vec![], lines.to_owned()));
            assert_eq!(documents(Documents::File, lines, size), (vec![lines.to_owned()], String::new()));
            let (split, open) = documents(Documents::Line, lines, size);
            assert_eq!((split, open.as_str()), (["one", "\rtwo\r", "three\r"].map(String::from).into(), ""));
            let (split, open) = documents(Documents::Marker, marked, size);
            assert_eq!((split, open.as_str()), (["a<|endo\n", "b<|", "\nc"].map(String::from).into(), ""));
        }
        assert_eq!(documents(Documents::Line, "\n\n", 1), (vec![], String::new()));
    }
}
