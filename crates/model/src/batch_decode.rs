//! Texts that are decoded side by side, and begin and end at any time: what a server asks of a model.

use crate::{Decoder, ModelError, Result};

/// Where the logits of a text's next token come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextLogits {
    /// [`BatchDecoder::step`].
    Step,
    /// [`BatchDecoder::prompt_part`], as after [`BatchDecoder::begin`]: the context was full, and is computed anew.
    Prompt,
}

/// Computes next-token logits of texts in slots. Each text has a length of its own; a free slot takes a new one while others
/// are in the middle of theirs.
///
/// A slot's logits are, bit by bit, those of a [`Decoder`] of the same model that has this text alone, whatever happens in
/// other slots and in whatever order.
///
/// A text begins with [`BatchDecoder::begin`] and calls of [`BatchDecoder::prompt_part`] until there are logits. Then each token
/// is given by [`BatchDecoder::append`], whose result says where its logits come from.
pub trait BatchDecoder {
    /// The number of tokens `V`.
    fn vocab_size(&self) -> usize;

    /// The number of slots, whose indices are those below it.
    fn slots(&self) -> usize;

    /// Gives a prompt to a free slot. Nothing is computed yet.
    ///
    /// # Errors
    /// When the prompt is empty or has a token outside the vocabulary; [`ModelError::Slot`], when the slot is not free.
    fn begin(&mut self, slot: usize, prompt: &[u32]) -> Result<()>;

    /// Does a bounded part of the work for a prompt, or for a context that is computed anew: with the last part come the logits
    /// of the next token, `(V)`. Between two parts, other slots may make steps. Where a part of another slot's work comes in
    /// between, the work that it interrupts begins again.
    ///
    /// # Errors
    /// [`ModelError::Slot`], when there is no such work for the slot; when the device fails.
    fn prompt_part(&mut self, slot: usize) -> Result<Option<&[f32]>>;

    /// Appends a token to the text of a slot whose logits have been given.
    ///
    /// # Errors
    /// When the token is outside the vocabulary; [`ModelError::Slot`], when the slot waits for logits or is free. The slot stays
    /// as it was.
    fn append(&mut self, slot: usize, token: u32) -> Result<NextLogits>;

    /// Computes the logits of the next token of some slots whose last token was appended for a step. Returns them in the order
    /// of `slots`, `(slots.len(), V)`.
    ///
    /// # Errors
    /// [`ModelError::Slot`], before anything is computed, when a slot has no such token, or is named twice; when the device fails.
    fn step(&mut self, slots: &[usize]) -> Result<&[f32]>;

    /// Makes a slot free, wherever its text is.
    fn release(&mut self, slot: usize);
}

/// What a slot waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum SlotState {
    /// A text.
    #[default]
    Free,
    /// Parts of prompt work.
    Prompt,
    /// A token: its logits have been given.
    Told,
    /// A step.
    Appended,
}

impl SlotState {
    /// Refuses what may be done in another state only.
    pub(crate) fn expect(found: Option<Self>, slot: usize, expected: Self) -> Result<()> {
        let reason = match found {
            Some(found) if found == expected => return Ok(()),
            None => "does not exist",
            Some(Self::Free) => "has no text",
            Some(Self::Prompt) => "waits for the work of a prompt",
            Some(Self::Told) => "waits for a token",
            Some(Self::Appended) => "waits for a step",
        };
        Err(ModelError::Slot { slot, reason })
    }
}

/// Opens a decoder for one more slot.
pub type OpenDecoder<'a> = Box<dyn Fn() -> Result<Box<dyn Decoder + 'a>> + 'a>;

/// A [`BatchDecoder`] of any model: a decoder for each slot, which is opened when the slot is first used. They compute one after
/// the other, and a prompt in one part.
pub struct LoneDecoders<'a> {
    vocab_size: usize,
    open: OpenDecoder<'a>,
    slots: Vec<LoneSlot<'a>>,
    /// The logits given last, `(slots asked for, V)`.
    logits: Vec<f32>,
}

#[derive(Default)]
struct LoneSlot<'a> {
    decoder: Option<Box<dyn Decoder + 'a>>,
    state: SlotState,
    /// The prompt until it is computed, then the last token.
    tokens: Vec<u32>,
}

impl<'a> LoneDecoders<'a> {
    /// Slots for texts of a model with this vocabulary.
    pub fn new(vocab_size: usize, slots: usize, open: OpenDecoder<'a>) -> Self {
        let slots = (0..slots).map(|_| LoneSlot::default()).collect();
        Self { vocab_size, open, slots, logits: Vec::new() }
    }

    fn state(&self, slot: usize) -> Option<SlotState> {
        self.slots.get(slot).map(|slot| slot.state)
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab_size = self.vocab_size;
        match tokens.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(ModelError::TokenOutOfRange { id, vocab_size }),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for LoneDecoders<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let states: Vec<_> = self.slots.iter().map(|slot| slot.state).collect();
        f.debug_struct("LoneDecoders").field("slots", &states).finish_non_exhaustive()
    }
}

impl BatchDecoder for LoneDecoders<'_> {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn begin(&mut self, slot: usize, prompt: &[u32]) -> Result<()> {
        SlotState::expect(self.state(slot), slot, SlotState::Free)?;
        if prompt.is_empty() {
            return Err(ModelError::EmptyPrompt);
        }
        self.check_tokens(prompt)?;
        let slot = &mut self.slots[slot];
        (slot.state, slot.tokens) = (SlotState::Prompt, prompt.to_vec());
        Ok(())
    }

    fn prompt_part(&mut self, slot: usize) -> Result<Option<&[f32]>> {
        SlotState::expect(self.state(slot), slot, SlotState::Prompt)?;
        let slot = &mut self.slots[slot];
        let decoder = match &mut slot.decoder {
            Some(decoder) => decoder,
            none => none.insert((self.open)()?),
        };
        self.logits.clear();
        self.logits.extend_from_slice(&decoder.start(&slot.tokens, 1)?.to_host()?);
        slot.state = SlotState::Told;
        Ok(Some(&self.logits))
    }

    fn append(&mut self, slot: usize, token: u32) -> Result<NextLogits> {
        SlotState::expect(self.state(slot), slot, SlotState::Told)?;
        self.check_tokens(&[token])?;
        let slot = &mut self.slots[slot];
        (slot.state, slot.tokens) = (SlotState::Appended, vec![token]);
        Ok(NextLogits::Step)
    }

    fn step(&mut self, slots: &[usize]) -> Result<&[f32]> {
        expect_appended(slots, |slot| self.state(slot))?;
        self.logits.clear();
        for &index in slots {
            let slot = &mut self.slots[index];
            let Some(decoder) = &mut slot.decoder else {
                return Err(ModelError::Slot { slot: index, reason: "has no decoder" });
            };
            self.logits.extend_from_slice(&decoder.step(&slot.tokens)?.to_host()?);
            slot.state = SlotState::Told;
        }
        Ok(&self.logits)
    }

    fn release(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.state = SlotState::Free;
        }
    }
}

/// Refuses slots that do not wait for a step, or are named twice.
pub(crate) fn expect_appended(slots: &[usize], state: impl Fn(usize) -> Option<SlotState>) -> Result<()> {
    for (i, &slot) in slots.iter().enumerate() {
        SlotState::expect(state(slot), slot, SlotState::Appended)?;
        if slots[..i].contains(&slot) {
            return Err(ModelError::Slot { slot, reason: "is named twice" });
        }
    }
    Ok(())
}
