//! What the grammar promises, and what the built-in one does.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{Grammar, Problem, StoryCorpus, accept, words::words};

const SEED: u64 = 0x5709;

fn stories(count: u64) -> impl Iterator<Item = super::Story> {
    (0..count).map(|index| Grammar::builtin().draw(SEED, index))
}

/// In how many ways the grammar can tell this story: 1, or 0 where it cannot. The search is exhaustive and does not rely
/// on the proof made when the grammar was read.
fn derivations(grammar: &Grammar, story: &str) -> usize {
    accept::parse(grammar, story).derivations.len()
}

fn problem(text: &str) -> (usize, Problem) {
    let error = Grammar::parse(text).expect_err("the grammar is wrong");
    (error.line, error.problem)
}

#[test]
fn the_builtin_grammar_is_well_formed() {
    let grammar = Grammar::parse(super::BUILTIN_TEXT);
    assert!(grammar.is_ok(), "{}", grammar.unwrap_err());
}

#[test]
fn every_story_has_exactly_one_derivation() {
    for story in stories(4000) {
        assert_eq!(derivations(Grammar::builtin(), &story.text), 1, "{}", story.text);
    }
}

#[test]
fn the_surprisal_of_drawing_is_that_of_reading() {
    for story in stories(4000) {
        let surprisal = Grammar::builtin().accept(&story.text).expect("a drawn story is a story");
        assert!((surprisal - story.surprisal).abs() < 1e-9, "{surprisal} and {} for {}", story.surprisal, story.text);
    }
}

#[test]
fn the_surprisals_of_the_bytes_sum_to_that_of_the_story_and_none_is_negative() {
    let grammar = Grammar::builtin();
    for story in stories(1000) {
        let bytes = grammar.surprisal_per_byte(&story.text).expect("a drawn story is a story");
        assert_eq!(bytes.len(), story.text.len());
        assert!(bytes.iter().all(|surprisal| *surprisal > -1e-9), "{bytes:?} for {}", story.text);
        assert!((bytes.iter().sum::<f64>() - story.surprisal).abs() < 1e-9, "{}", story.text);
    }
    assert!(grammar.surprisal_per_byte("Once a").is_err());
}

#[test]
fn the_surprisal_of_a_byte_is_that_of_the_stories_that_begin_so() {
    // Of what begins with "a", 3 in 4 goes on with "b"; the row of a variable is paid for where it shows.
    let text = "rule story:\n 1 \"ab[end]\"\n 2 \"ab!\"\n 1 with v from t \"a{v}\"\n\
                rule end:\n 1 \"c\"\n 1 \"d\"\ntable t: k\n 1 x\n 3 yz\n";
    let grammar = Grammar::parse(text).unwrap();
    let close = |story: &str, odds: &[f64]| {
        let surprisal = grammar.surprisal_per_byte(story).unwrap();
        let all = surprisal.iter().zip(odds).all(|(surprisal, odds)| (surprisal + odds.ln()).abs() < 1e-12);
        assert!(all && surprisal.len() == odds.len(), "{story}: {surprisal:?}");
    };
    close("abc", &[1.0, 0.75, 1.0 / 6.0]);
    close("ab!", &[1.0, 0.75, 2.0 / 3.0]);
    close("ayz", &[1.0, 0.1875, 1.0]);
}

#[test]
fn the_mean_of_drawn_stories_is_the_exact_entropy_and_length() {
    let grammar = Grammar::builtin();
    let (surprisal, lengths): (Vec<f64>, Vec<f64>) =
        stories(20_000).map(|s| (s.surprisal, s.text.len() as f64)).unzip();
    for (values, exact) in [(surprisal, grammar.entropy()), (lengths, grammar.expected_len())] {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let standard_error = (variance / n).sqrt();
        assert!((mean - exact).abs() < 4.0 * standard_error, "mean {mean}, exact {exact}");
    }
}

#[test]
fn the_floor_is_far_from_both_zero_and_chance() {
    let floor = Grammar::builtin().nats_per_char();
    assert!((0.4..0.65).contains(&floor), "{floor}");
    // What is bound once must not weigh much: a window can begin after it was told.
    assert!(Grammar::builtin().binding_entropy() < 0.12 * Grammar::builtin().entropy());
}

#[test]
fn no_alternative_is_too_rare_to_be_learnt() {
    let grammar = Grammar::builtin();
    let odds = grammar.rules.iter().map(|r| &r.odds).chain(grammar.tables.iter().map(|t| &t.odds));
    let rarest = odds.flat_map(|odds| &odds.surprisals).copied().fold(0.0, f64::max);
    assert!((-rarest).exp() > 0.02, "an alternative has probability {}", (-rarest).exp());
}

#[test]
fn stories_are_short_lines_of_few_characters() {
    let grammar = Grammar::builtin();
    assert!(grammar.max_len() < 240, "{}", grammar.max_len());
    assert!((140.0..180.0).contains(&grammar.expected_len()), "{}", grammar.expected_len());
    let mut characters = BTreeSet::new();
    for story in stories(4000) {
        assert!(story.text.len() <= grammar.max_len());
        characters.extend(story.text.chars());
    }
    let expected = |c: &char| c.is_ascii_alphabetic() || " .,!\"".contains(*c);
    assert!(characters.iter().all(expected), "{characters:?}");
}

#[test]
fn about_a_third_of_the_stories_open_with_once() {
    let once = stories(4000).filter(|story| story.text.starts_with("Once")).count();
    assert!((1200..1600).contains(&once), "{once} of 4000");
}

#[test]
fn there_are_300_to_500_words_and_stories_use_no_others() {
    let words = words(Grammar::builtin());
    assert!((300..=500).contains(&words.len()), "{}", words.len());
    let mut told = BTreeSet::new();
    for story in stories(20_000) {
        let text = story.text.to_lowercase();
        told.extend(text.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()).map(str::to_owned));
    }
    assert_eq!(words, told);
}

#[test]
fn words_reach_over_the_ends_of_rules() {
    let grammar = Grammar::parse("rule story:\n 1 \"un[verb]ed it!\"\nlist verb:\n tell turn\n").unwrap();
    assert_eq!(words(&grammar).into_iter().collect::<Vec<_>>(), ["it", "untelled", "unturned"]);
}

#[test]
fn a_story_depends_on_seed_and_index_alone() {
    let grammar = Grammar::builtin();
    let again = Grammar::parse(super::BUILTIN_TEXT).unwrap();
    let forward: Vec<_> = (0..50).map(|i| grammar.draw(3, i)).collect();
    let backward: Vec<_> = (0..50).rev().map(|i| again.draw(3, i)).collect();
    assert!(forward.iter().eq(backward.iter().rev()));
    assert_ne!(grammar.draw(3, 0), grammar.draw(4, 0));
    let far = grammar.draw(u64::MAX, u64::MAX);
    assert_eq!(derivations(grammar, &far.text), 1);
}

#[test]
fn different_indices_tell_different_stories() {
    let distinct: BTreeSet<String> = stories(5000).map(|story| story.text).collect();
    assert_eq!(distinct.len(), 5000);
}

#[test]
fn what_is_bound_stays_the_same_through_a_story() {
    for story in stories(3000) {
        let she = [" she ", "She ", " her "].iter().any(|word| story.text.contains(word));
        let he = [" he ", " He ", " him "].iter().any(|word| story.text.contains(word));
        assert!(!(she && he), "{}", story.text);
    }
}

#[test]
fn a_wrong_pronoun_is_rejected_where_it_stands() {
    let grammar = Grammar::builtin();
    let mut tried = 0;
    for story in stories(500) {
        for (pronoun, other) in [(" he ", " she "), (" she ", " he "), (" her ", " him "), (" him ", " her ")] {
            let Some(at) = story.text.find(pronoun) else { continue };
            let wrong = story.text.replacen(pronoun, other, 1);
            let rejected = grammar.accept(&wrong).expect_err("the pronoun is wrong");
            assert!((at + 1..at + 4).contains(&rejected.position), "{wrong} at {}", rejected.position);
            tried += 1;
        }
    }
    assert!(tried > 200, "{tried}");
}

#[test]
fn a_story_cut_short_is_rejected_at_its_end_and_one_too_long_at_the_excess() {
    let grammar = Grammar::builtin();
    for story in stories(20) {
        for end in 0..story.text.len() {
            assert_eq!(grammar.accept(&story.text[..end]).unwrap_err().position, end);
        }
        for more in ["\n", " ", ".", "Once"] {
            let longer = format!("{}{more}", story.text);
            assert_eq!(grammar.accept(&longer).unwrap_err().position, story.text.len());
        }
    }
}

#[test]
fn text_that_is_no_story_is_rejected_without_ado() {
    let grammar = Grammar::builtin();
    for (text, position) in [("", 0), ("\u{e9}t\u{e9}", 0), ("Once\u{e9}", 4), ("Oncr", 3), ("Once Mia the", 5)] {
        assert_eq!(grammar.accept(text).unwrap_err().position, position, "{text:?}");
    }
}

#[test]
fn synth_makes_whole_stories_and_just_enough_of_them() {
    let grammar = Grammar::builtin();
    for min_bytes in [0, 1, 500, 20_000] {
        let corpus = StoryCorpus::synth(grammar, min_bytes, SEED);
        let ends: Vec<usize> = corpus.stories.iter().map(|story| story.end).collect();
        assert!(corpus.text.len() >= min_bytes);
        assert_eq!(ends.last(), Some(&corpus.text.len()));
        assert!(ends.len() == 1 || ends[ends.len() - 2] < min_bytes);
        let mut start = 0;
        let mut sum = 0.0;
        for (line, story) in corpus.text.lines().zip(&corpus.stories) {
            assert_eq!(&corpus.text[start..story.end], format!("{line}\n"));
            let surprisal = grammar.accept(line).expect("each line is a story");
            assert!((surprisal - story.surprisal).abs() < 1e-9);
            sum += story.surprisal;
            start = story.end;
        }
        assert!((corpus.surprisal() - sum).abs() < 1e-6);
        assert!((corpus.nats_per_char() - sum / corpus.text.len() as f64).abs() < 1e-12);
    }
}

proptest! {
    #[test]
    fn every_drawn_story_is_accepted(seed: u64, index: u64) {
        let story = Grammar::builtin().draw(seed, index);
        prop_assert_eq!(derivations(Grammar::builtin(), &story.text), 1);
    }

    #[test]
    fn a_story_with_one_letter_changed_is_rejected(index: u64, at: prop::sample::Index, letter in "[A-Za-z]") {
        let mut text = Grammar::builtin().draw(SEED, index).text;
        // Of the notes of a song, any is as good as another.
        let letters = text.match_indices(|c: char| c.is_ascii_alphabetic()).map(|(i, _)| i);
        let song = text.find("sang \"").unwrap_or(text.len());
        let letters: Vec<usize> = letters.filter(|&i| i < song).collect();
        let at = letters[at.index(letters.len())];
        prop_assume!(text[at..=at] != letter);
        text.replace_range(at..=at, &letter);
        let rejected = Grammar::builtin().accept(&text);
        prop_assert!(rejected.is_err_and(|rejected| rejected.position <= text.len()), "{}", text);
    }

    #[test]
    fn a_story_with_two_words_swapped_is_rejected(index: u64, at: prop::sample::Index) {
        let grammar = Grammar::builtin();
        let text = grammar.draw(SEED, index).text;
        let mut words: Vec<&str> = text.split(' ').collect();
        // Two adjectives can change places and make another story, a small word or the end of a sentence cannot.
        let small = ["a", "the", "this", "of", "it", "and", "she", "he"];
        let fixed = |&i: &usize| words[i].ends_with(['.', '!']) || small.contains(&words[i]);
        let fixed: Vec<usize> = (0..words.len() - 1).filter(fixed).collect();
        let at = fixed[at.index(fixed.len())];
        words.swap(at, at + 1);
        prop_assert!(grammar.accept(&words.join(" ")).is_err(), "{}", words.join(" "));
    }

    #[test]
    fn a_rejected_position_is_where_the_text_leaves_all_stories(index: u64, cut: prop::sample::Index, rest in "[ -~]{1,20}") {
        let grammar = Grammar::builtin();
        let story = grammar.draw(SEED, index).text;
        let cut = cut.index(story.len());
        let text = format!("{}{rest}", &story[..cut]);
        if let Err(rejected) = grammar.accept(&text) {
            // What comes before is the beginning of a story: by itself it is rejected only for being too short.
            prop_assert!(rejected.position >= cut);
            match grammar.accept(&text[..rejected.position]) {
                Ok(_) => {}
                Err(shorter) => prop_assert_eq!(shorter.position, rejected.position),
            }
        }
    }
}

// ---- Grammars that are wrong

const PROPER: &str = "
# A small grammar with everything in it.
rule story:
  3 with who from person \"{who} [did]. {who.She} [did].\"
  1 \"Nobody [did].\"
list did:
  sang slept*2
table person: name She
  1 Ada | She
  1 Ben | He
";

#[test]
fn entropy_length_and_words_of_a_small_grammar_are_those_counted_by_hand() {
    let grammar = Grammar::parse(PROPER).unwrap();
    let of = |ps: &[f64]| ps.iter().map(|p| -p * p.ln()).sum::<f64>();
    let did = of(&[1.0 / 3.0, 2.0 / 3.0]);
    let expected = of(&[0.75, 0.25]) + 0.75 * (of(&[0.5, 0.5]) + 2.0 * did) + 0.25 * did;
    assert!((grammar.entropy() - expected).abs() < 1e-12);
    assert!((grammar.binding_entropy() - 0.75 * of(&[0.5, 0.5])).abs() < 1e-12);
    let did = (4.0 + 2.0 * 5.0) / 3.0;
    let expected = 0.75 * (3.0 + 2.5 + 5.0 + 2.0 * did) + 0.25 * (8.0 + did);
    assert!((grammar.expected_len() - expected).abs() < 1e-12);
    assert_eq!(grammar.max_len(), "Ada slept. She slept.".len());
    let words: Vec<String> = words(&grammar).into_iter().collect();
    assert_eq!(words, ["ada", "ben", "he", "nobody", "sang", "she", "slept"]);
    let surprisal = grammar.accept("Ben slept. He sang.").unwrap();
    assert!((surprisal - -(0.75f64 * 0.5 * 2.0 / 3.0 / 3.0).ln()).abs() < 1e-12);
    assert_eq!(grammar.accept("Ben slept. She sang.").unwrap_err().position, 11);
}

#[test]
fn errors_name_the_line_and_the_problem() {
    let changed = |from: &str, to: &str| {
        assert!(PROPER.contains(from));
        problem(&PROPER.replacen(from, to, 1))
    };
    assert_eq!(changed("Nobody [did]", "Nobody [dud]"), (5, Problem::UndefinedRule("dud".into())));
    assert_eq!(changed("from person", "from people"), (4, Problem::UndefinedTable("people".into())));
    let column = Problem::UndefinedColumn { table: "person".into(), column: "her".into() };
    assert_eq!(changed("who.She", "who.her"), (4, column));
    assert_eq!(changed("Nobody", "{who}"), (5, Problem::Unbound("who".into())));
    assert_eq!(changed("Nobody", "{whom}"), (5, Problem::Unbound("whom".into())));
    assert_eq!(changed("sang", "[story]"), (3, Problem::Recursion("story".into())));
    for weight in ["0", "-1", "nan", "inf", "x"] {
        assert_eq!(changed("  1 \"", &format!("  {weight} \"")), (5, Problem::Weight(weight.into())));
        assert_eq!(changed("*2", &format!("*{weight}")), (7, Problem::Weight(weight.into())));
        assert_eq!(changed("  1 Ben", &format!("  {weight} Ben")), (10, Problem::Weight(weight.into())));
    }
    assert_eq!(changed("slept*2", "sang*2"), (7, Problem::DuplicateAlternative(7)));
    assert_eq!(changed("Ben", "Ada"), (10, Problem::DuplicateAlternative(9)));
    assert_eq!(changed("list did:", "list story:"), (6, Problem::DuplicateName("story".into())));
    assert_eq!(changed("name She", "name name"), (8, Problem::DuplicateName("name".into())));
    assert_eq!(changed("rule story", "rule tale"), (1, Problem::NoStory));
    assert_eq!(changed("sang", "s\u{e4}ng"), (7, Problem::Character('\u{e4}')));
    assert_eq!(changed("{who} [did]. {who.She}", "{who} [did]. {who}"), (8, Problem::Unused("person.She".into())));
    assert_eq!(changed("{who} [did]. {who.She}", "{who.She} [did]. {who}"), (4, Problem::FirstMention("who".into())));
    assert_eq!(
        changed("with who from person", "with who from person, who from person"),
        (4, Problem::Rebound("who".into()))
    );
    let unused = format!("{PROPER}list more:\n  x\n");
    assert_eq!(problem(&unused), (11, Problem::Unused("more".into())));
    let empty = format!("{PROPER}list more:\n");
    assert_eq!(problem(&empty), (11, Problem::Empty("more".into())));
}

#[test]
fn lines_out_of_format_are_refused() {
    let cases = [
        ("  1 \"text\"\n", 1),
        ("rule story\n", 1),
        ("rule story: column\n", 1),
        ("table person:\n", 1),
        ("tale story:\n", 1),
        ("rule st-ory:\n", 1),
        ("rule story:\n  1 text\n", 2),
        ("rule story:\n  1 \"text\n", 2),
        ("rule story:\n  \"text\"\n", 2),
        ("rule story:\n  1 who from person \"text\"\n", 2),
        ("rule story:\n  1 \"[text\"\n", 2),
        ("rule story:\n  1 \"te]xt\"\n", 2),
        ("table person: name she\n  1 Ada\n", 2),
    ];
    for (text, line) in cases {
        let (at, problem) = problem(text);
        assert!(matches!(problem, Problem::Syntax(_)), "{text:?}: {problem}");
        assert_eq!(at, line, "{text:?}");
    }
}

#[test]
fn a_grammar_with_two_ways_to_one_text_is_refused() {
    // An alternative that goes on from another.
    let sample = "cap".to_owned();
    assert_eq!(problem("list story:\n  cap cape\n"), (2, Problem::Ambiguous { other: 2, sample }));
    // An optional part followed by what begins alike.
    let optional = "rule story:\n  1 \"He ran[far].\"\nrule far:\n  1 \" and hid\"\n  1 \"\"\n";
    assert_eq!(problem(optional), (5, Problem::Ambiguous { other: 4, sample: String::new() }));
    // The same text by way of different rules.
    let ways = "rule story:\n  1 \"a [x]\"\n  1 \"[y]\"\nlist x:\n  b c\nrule y:\n  1 \"a c\"\n  1 \"d\"\n";
    assert_eq!(problem(ways), (3, Problem::Ambiguous { other: 2, sample: "a c".to_owned() }));
    // A common rule is stepped over, and the difference comes after it.
    let common = "rule story:\n  1 \"[x].\"\n  1 \"[x]!\"\nlist x:\n  b c\n";
    assert!(Grammar::parse(common).is_ok());
    let same = "rule story:\n  1 \"[x].\"\n  1 \"[x].!\"\nlist x:\n  b c\n";
    assert_eq!(problem(same), (3, Problem::Ambiguous { other: 2, sample: "[x].".to_owned() }));
    // Keys of a table.
    let keys = "rule story:\n  1 with v from t \"{v}\"\ntable t: key\n  1 Ann\n  1 Anna\n";
    assert_eq!(problem(keys), (5, Problem::Ambiguous { other: 4, sample: "Ann".to_owned() }));
}

#[test]
fn a_cell_can_use_rules_but_no_variables() {
    let cells = "rule story:\n  1 with v from t \"{v} {v.gift}.\"\ntable t: key gift\n  1 Ann | [x]\n  1 Bob | hat\nlist x:\n  pin pen\n";
    let grammar = Grammar::parse(cells).unwrap();
    assert!((grammar.entropy() - 1.5 * 2f64.ln()).abs() < 1e-12);
    assert!((grammar.accept("Ann pen.").unwrap() - 4f64.ln()).abs() < 1e-12);
    assert_eq!(grammar.accept("Bob pen.").unwrap_err().position, 4);
    assert_eq!(problem(&cells.replace("hat", "{v}")).1, Problem::Unbound("v".into()));
}
