//! Stop strings in a text that is shown while it is made.

/// A stop string is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stop string is empty: it would stop every text before it begins; leave it out")]
pub struct StopStringsError;

/// Ends a text before the first occurrence of any of some strings.
///
/// The first occurrence is the one that begins first. Text is held back only while it could still turn out to be (or to
/// come after) such an occurrence.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// Stops at any of `stops`; with none, the text passes through.
    ///
    /// # Errors
    /// When one of them is empty.
    pub fn new(stops: Vec<String>) -> Result<Self, StopStringsError> {
        if stops.iter().any(String::is_empty) {
            return Err(StopStringsError);
        }
        Ok(Self { stops, held: String::new(), stopped: false })
    }

    /// Adds the next piece of the text. Gives what can be shown now, and whether the text has ended; what is pushed
    /// after the end is ignored.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        if self.stopped {
            return (String::new(), true);
        }
        self.held.push_str(piece);
        let stop = self.first_stop();
        match (self.first_open(), stop) {
            // A stop that begins earlier may still be completed: nothing from there on is settled.
            (Some(open), stop) if stop.is_none_or(|at| open < at) => {
                let later = self.held.split_off(open);
                (std::mem::replace(&mut self.held, later), false)
            }
            (_, Some(at)) => (self.end_at(at), true),
            (_, None) => (std::mem::take(&mut self.held), false),
        }
    }

    /// Ends the text and gives what was held back, up to a stop string if there is one in it.
    pub fn finish(&mut self) -> String {
        match self.first_stop() {
            Some(at) => self.end_at(at),
            None => std::mem::take(&mut self.held),
        }
    }

    /// Whether the text ended at a stop string.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    fn end_at(&mut self, at: usize) -> String {
        self.stopped = true;
        let mut text = std::mem::take(&mut self.held);
        text.truncate(at);
        text
    }

    /// Where the first stop string begins in the text that is held.
    fn first_stop(&self) -> Option<usize> {
        self.stops.iter().filter_map(|stop| self.held.find(stop)).min()
    }

    /// Where the first stop string begins that the end of the text cuts off.
    fn first_open(&self) -> Option<usize> {
        let longest = self.stops.iter().map(String::len).max()?;
        let from = (self.held.len() + 1).saturating_sub(longest);
        let is_open = |rest: &str| self.stops.iter().any(|stop| stop.len() > rest.len() && stop.starts_with(rest));
        (from..self.held.len()).filter(|&at| self.held.is_char_boundary(at)).find(|&at| is_open(&self.held[at..]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(stops: &[&str]) -> StopStrings {
        StopStrings::new(stops.iter().map(|&s| s.to_owned()).collect()).unwrap()
    }

    #[test]
    fn the_stop_string_and_what_follows_it_are_not_shown() {
        let mut stops = stops(&["END"]);
        assert_eq!(stops.push("one EN"), ("one ".to_owned(), false));
        assert_eq!(stops.push("ough E"), ("ENough ".to_owned(), false));
        assert_eq!(stops.push("ND two"), (String::new(), true));
        assert_eq!(stops.push("three"), (String::new(), true));
        assert_eq!((stops.finish(), stops.stopped()), (String::new(), true));
    }

    #[test]
    fn a_partial_match_is_shown_when_the_text_ends() {
        let mut stops = stops(&["END"]);
        assert_eq!(stops.push("the EN"), ("the ".to_owned(), false));
        assert_eq!((stops.finish(), stops.stopped()), ("EN".to_owned(), false));
    }

    #[test]
    fn a_longer_stop_that_began_earlier_wins_over_one_inside_of_it() {
        let mut long_wins = stops(&["abc", "b"]);
        assert_eq!(long_wins.push("ab"), (String::new(), false));
        assert_eq!(long_wins.push("c"), (String::new(), true));
        let mut short_wins = stops(&["abc", "b"]);
        assert_eq!(short_wins.push("ab"), (String::new(), false));
        assert_eq!(short_wins.push("x"), ("a".to_owned(), true));
        let mut at_the_end = stops(&["abc", "b"]);
        at_the_end.push("ab");
        assert_eq!((at_the_end.finish(), at_the_end.stopped()), ("a".to_owned(), true));
    }

    #[test]
    fn without_stops_everything_passes_at_once_and_an_empty_stop_is_refused() {
        assert_eq!(stops(&[]).push("text"), ("text".to_owned(), false));
        assert_eq!(StopStrings::new(vec![String::new()]).unwrap_err(), StopStringsError);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_output_is_the_text_up_to_the_first_stop_and_nothing_is_held_longer_than_needed(
            pieces in prop::collection::vec("[abé]{0,4}", 0..8),
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let text = pieces.concat();
            let end = stops.iter().filter_map(|stop| text.find(stop)).min();
            let mut filter = StopStrings::new(stops.clone()).unwrap();
            let (mut out, mut read, mut ended) = (String::new(), String::new(), false);
            for piece in &pieces {
                let (shown, stopped) = filter.push(piece);
                out.push_str(&shown);
                read.push_str(piece);
                ended |= stopped;
                prop_assert_eq!(ended, stopped);
                if !stopped {
                    // What is held back is the begin of a stop string, or else it was held too long.
                    let held = &read[out.len()..];
                    let could_stop = |stop: &String| stop.starts_with(held);
                    prop_assert!(held.is_empty() || stops.iter().any(could_stop), "held {:?}", held);
                }
            }
            out.push_str(&filter.finish());
            prop_assert_eq!(out, &text[..end.unwrap_or(text.len())]);
            prop_assert_eq!(filter.stopped(), end.is_some());
        }
    }
}
