//! Lines of a growing file from any line on, without reading what comes before.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom},
    marker::PhantomData,
    path::PathBuf,
};

use super::{LastLine, Line, parse};
use crate::{Result, TrainError};

/// Lines between two places that are remembered.
const LINES_PER_MARK: usize = 256;

/// A file of lines to which another writer appends, and which it may write anew. What was read once is remembered as places
/// in the file, so that each byte is looked at once and then where it is asked for.
#[derive(Debug)]
pub struct IndexedLines<T> {
    path: PathBuf,
    /// Where every 256th line begins, the first at 0.
    marks: Vec<u64>,
    lines: usize,
    /// The end of the last whole line.
    end: u64,
    /// That line: another file has another one there.
    last: Vec<u8>,
    row: PhantomData<T>,
}

/// What [`IndexedLines::read`] has read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadLines<T> {
    /// The lines.
    pub rows: Vec<T>,
    /// The number of the line behind them.
    pub next: usize,
}

impl<T: Line> IndexedLines<T> {
    /// A reader of a file, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, marks: Vec::new(), lines: 0, end: 0, last: Vec::new(), row: PhantomData }
    }

    /// The lines from number `from` on, the first of which is 0: as many as fit `max_bytes`, but one at least where there is
    /// one. A line that is not written to its end is left for later. Where the file has fewer lines than `from` it is another
    /// one than before, and is read from its start: `next` is less than `from` then.
    ///
    /// # Errors
    /// When the file cannot be read, or a line of it is broken or of another format.
    pub fn read(&mut self, from: usize, max_bytes: usize) -> Result<ReadLines<T>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                *self = Self::new(std::mem::take(&mut self.path));
                return Ok(ReadLines { rows: Vec::new(), next: 0 });
            }
            Err(e) => return Err(TrainError::io("read", &self.path)(e)),
        };
        let read = self.index(&mut file).and_then(|()| {
            let from = if from > self.lines { 0 } else { from };
            Ok((from, self.bytes_from(&mut file, from, max_bytes)?))
        });
        let (from, bytes) = read.map_err(TrainError::io("read", &self.path))?;
        let text = str::from_utf8(&bytes).map_err(|e| TrainError::bad_file(&self.path, e))?;
        let rows: Vec<T> = parse(&self.path, text, from, LastLine::IsWhole)?;
        Ok(ReadLines { next: from + rows.len(), rows })
    }

    /// Takes the lines in that were added.
    fn index(&mut self, file: &mut File) -> std::io::Result<()> {
        if !self.is_the_same(file)? {
            *self = Self::new(std::mem::take(&mut self.path));
        }
        file.seek(SeekFrom::Start(self.end))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            if self.lines.is_multiple_of(LINES_PER_MARK) {
                self.marks.push(self.end);
            }
            self.lines += 1;
            self.end += line.len() as u64;
            std::mem::swap(&mut self.last, &mut line);
            line.clear();
        }
        Ok(())
    }

    /// Whether the last line that was seen is where it was.
    fn is_the_same(&self, file: &mut File) -> std::io::Result<bool> {
        if file.metadata()?.len() < self.end {
            return Ok(false);
        }
        let mut there = vec![0; self.last.len()];
        file.seek(SeekFrom::Start(self.end - self.last.len() as u64))?;
        match file.read_exact(&mut there) {
            Ok(()) => Ok(there == self.last),
            // It was cut between the two looks at it.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The bytes of the whole lines from number `from` on that fit `max_bytes`.
    fn bytes_from(&self, file: &mut File, from: usize, max_bytes: usize) -> std::io::Result<Vec<u8>> {
        let mark = from / LINES_PER_MARK;
        let Some(&start) = self.marks.get(mark) else { return Ok(Vec::new()) };
        file.seek(SeekFrom::Start(start))?;
        let mut reader = BufReader::with_capacity(1 << 16, file.take(self.end - start));
        let (mut bytes, mut line) = (Vec::new(), Vec::new());
        let mut number = mark * LINES_PER_MARK;
        while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            if number >= from {
                if !bytes.is_empty() && bytes.len() + line.len() > max_bytes {
                    break;
                }
                bytes.append(&mut line);
            }
            number += 1;
            line.clear();
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;
    use crate::metrics::{Metrics, MetricsFile, RowKind};

    const ALL: usize = usize::MAX;

    fn row(step: u64) -> Metrics {
        Metrics { loss: Some(1.0 / step as f64), seconds: step as f64, ..Metrics::new(RowKind::Train, step) }
    }

    fn steps(read: &ReadLines<Metrics>) -> Vec<u64> {
        read.rows.iter().map(|row| row.step).collect()
    }

    #[test]
    fn lines_are_read_from_any_line_on_while_the_file_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut lines = IndexedLines::<Metrics>::new(path.clone());
        assert_eq!(lines.read(0, ALL).unwrap(), ReadLines { rows: Vec::new(), next: 0 });
        let mut file = MetricsFile::create(&path, Vec::new()).unwrap();
        for step in 0..1000 {
            file.append(row(step + 1)).unwrap();
            if step % 100 == 7 {
                let read = lines.read(step as usize - 7, ALL).unwrap();
                assert_eq!((steps(&read), read.next), ((step - 6..=step + 1).collect(), step as usize + 1));
            }
        }
        for from in [0, 1, 255, 256, 257, 999, 1000] {
            let read = lines.read(from, ALL).unwrap();
            assert_eq!((steps(&read), read.next), ((from as u64 + 1..=1000).collect(), 1000));
        }
    }

    #[test]
    fn a_line_is_read_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut file = MetricsFile::create(&path, vec![row(1)]).unwrap();
        let mut lines = IndexedLines::<Metrics>::new(path.clone());
        let mut torn = fs::OpenOptions::new().append(true).open(&path).unwrap();
        let whole = serde_json::to_string(&row(2)).unwrap() + "\n";
        let (one, two) = whole.split_at(20);
        torn.write_all(one.as_bytes()).unwrap();
        assert_eq!(steps(&lines.read(0, ALL).unwrap()), [1]);
        assert_eq!(lines.read(1, ALL).unwrap(), ReadLines { rows: Vec::new(), next: 1 });
        torn.write_all(two.as_bytes()).unwrap();
        assert_eq!(steps(&lines.read(1, ALL).unwrap()), [2]);
        file.append(row(3)).unwrap();
        assert_eq!(steps(&lines.read(1, ALL).unwrap()), [2, 3]);
    }

    #[test]
    fn an_answer_is_bounded_and_has_one_line_at_least() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsFile::create(&path, (1..=5).map(row).collect()).unwrap();
        let mut lines = IndexedLines::<Metrics>::new(path);
        let first = lines.read(0, 1).unwrap();
        assert_eq!((steps(&first), first.next), (vec![1], 1));
        let line = serde_json::to_string(&row(2)).unwrap().len() + 1;
        let two = lines.read(1, 2 * line + line / 2).unwrap();
        assert_eq!((steps(&two), two.next), (vec![2, 3], 3));
    }

    #[test]
    fn a_file_that_was_written_anew_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsFile::create(&path, (1..=600).map(row).collect()).unwrap();
        let mut lines = IndexedLines::<Metrics>::new(path.clone());
        assert_eq!(lines.read(600, ALL).unwrap().next, 600);
        // Shorter: a run that goes on from an earlier step.
        MetricsFile::create(&path, (1..=3).map(row).collect()).unwrap();
        let again = lines.read(600, ALL).unwrap();
        assert_eq!((steps(&again), again.next), (vec![1, 2, 3], 3));
        // Longer, with other lines.
        let other = |step| Metrics { seconds: 1e6 + step as f64, ..row(step) };
        MetricsFile::create(&path, (1..=900).map(other).collect()).unwrap();
        let again = lines.read(300, ALL).unwrap();
        assert_eq!(again.rows, (301..=900).map(other).collect::<Vec<_>>());
        fs::remove_file(&path).unwrap();
        assert_eq!(lines.read(900, ALL).unwrap(), ReadLines { rows: Vec::new(), next: 0 });
    }

    #[test]
    fn a_damaged_line_is_named_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsFile::create(&path, vec![row(1), row(2)]).unwrap();
        fs::write(&path, fs::read_to_string(&path).unwrap() + "no line\n").unwrap();
        let mut lines = IndexedLines::<Metrics>::new(path);
        let message = lines.read(1, ALL).unwrap_err().to_string();
        assert!(message.contains("line 3 is not one of its lines"), "{message}");
    }
}
