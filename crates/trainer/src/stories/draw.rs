//! Telling a story: choice after choice, each paid for with -ln p.

use tinygpt_sampler::{RngDomain, philox_at, unit_f64};

use super::grammar::{Grammar, Symbol};

/// A story that was drawn from a grammar.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    /// One line of printable ASCII, without its end.
    pub text: String,
    /// -ln of the probability of the text.
    pub surprisal: f64,
}

/// The random numbers of one story, which depend on nothing but its seed and its index: one block for each choice.
struct Dice {
    seed: u64,
    index: u64,
    choice: u32,
}

impl Dice {
    fn new(seed: u64, index: u64) -> Dice {
        Dice { seed, index, choice: 0 }
    }

    /// A uniform number in [0, 1), of 53 bits.
    fn uniform(&mut self) -> f64 {
        let block = philox_at(self.seed, RngDomain::Stories, self.index, self.choice);
        self.choice = self.choice.wrapping_add(1);
        unit_f64(block[0], block[1])
    }
}

impl Grammar {
    /// Story number `index` of the endless series that `seed` stands for.
    pub fn draw(&self, seed: u64, index: u64) -> Story {
        draw(self, &mut Dice::new(seed, index))
    }
}

/// Tells the story that the dice ask for.
fn draw(grammar: &Grammar, dice: &mut Dice) -> Story {
    let story = Story { text: String::with_capacity(256), surprisal: 0.0 };
    let mut teller = Teller { grammar, dice, story, rows: vec![0; grammar.variables.len()] };
    teller.rule(grammar.story);
    teller.story
}

struct Teller<'a> {
    grammar: &'a Grammar,
    dice: &'a mut Dice,
    story: Story,
    /// The row each variable is bound to, for those that are.
    rows: Vec<usize>,
}

impl<'a> Teller<'a> {
    fn rule(&mut self, id: usize) {
        let grammar: &'a Grammar = self.grammar;
        let rule = &grammar.rules[id];
        let index = rule.odds.pick(self.dice.uniform());
        self.story.surprisal += rule.odds.surprisals[index];
        let choice = &rule.choices[index];
        for &variable in &choice.binds {
            let odds = &grammar.tables[grammar.variables[variable].table].odds;
            let row = odds.pick(self.dice.uniform());
            self.story.surprisal += odds.surprisals[row];
            self.rows[variable] = row;
        }
        self.symbols(&choice.body);
    }

    fn symbols(&mut self, symbols: &'a [Symbol]) {
        let grammar: &'a Grammar = self.grammar;
        for symbol in symbols {
            match *symbol {
                Symbol::Text(ref text) => self.story.text.push_str(text),
                Symbol::Rule(id) => self.rule(id),
                Symbol::Cell { variable, column } => {
                    let table = &grammar.tables[grammar.variables[variable].table];
                    self.symbols(&table.rows[self.rows[variable]].cells[column]);
                }
            }
        }
    }
}
