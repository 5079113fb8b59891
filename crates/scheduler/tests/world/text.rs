//! What a sequence must hold and say, computed from its tokens alone: hashes stand for keys and
//! values, depths and draws are functions of the text so far, as in a model whose bits do not
//! depend on company.

use scheduler::{KvShape, Request};

/// SplitMix64's mixing of a state.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A text under one depth_options.
pub(crate) struct Text {
    pub(crate) request: Request,
    pub(crate) recursions: u32,
    pub(crate) every_row: bool,
    /// The request's seed, where contents depend on it, and its adapter, on which they always do.
    seed: u64,
    pub(crate) tokens: Vec<u32>,
    pub(crate) caps: Vec<u32>,
    pub(crate) depths: Vec<u32>,
    hashes: Vec<u64>,
    spent: u64,
    drawn: usize,
}

impl Text {
    pub(crate) fn new(request: Request, shape: &KvShape) -> Self {
        let mut text = Self {
            recursions: shape.layers.len() as u32 - 1,
            every_row: shape.every_row,
            seed: (if shape.by_seed { request.sampling.seed } else { 0 })
                + 2 * u64::from(request.adapter),
            tokens: Vec::new(),
            caps: Vec::new(),
            depths: Vec::new(),
            hashes: Vec::new(),
            spent: 0,
            drawn: 0,
            request,
        };
        let (prompt, cap) = (text.request.prompt.clone(), text.cap());
        let (last, rest) = prompt.split_last().unwrap();
        rest.iter().for_each(|&token| text.push(token, cap));
        // The prompt's last row predicts the first token, which is in the budget.
        let cap = if text.request.max_tokens > 0 { text.budget(0, 0) } else { cap };
        text.push(*last, cap);
        text
    }

    fn cap(&self) -> u32 {
        self.request.depth_options.max_depth.unwrap_or(self.recursions).min(self.recursions)
    }

    fn push(&mut self, token: u32, cap: u32) {
        let depth_options = &self.request.depth_options;
        let root = mix(u64::from(depth_options.min_depth)
            ^ (u64::from(depth_options.threshold.to_bits()) << 8)
            ^ u64::from(self.cap()) << 50
            ^ self.seed << 60);
        let above = self.hashes.last().copied().unwrap_or(root);
        let hash = mix(above ^ mix(u64::from(token) ^ u64::from(cap) << 40));
        let depth = (mix(hash ^ 1) % u64::from(self.recursions + 1)) as u32;
        self.tokens.push(token);
        self.caps.push(cap);
        self.hashes.push(hash);
        self.depths.push(depth.clamp(depth_options.min_depth, cap));
    }

    /// The token that follows the text so far.
    pub(crate) fn next(&self) -> u32 {
        (mix(self.hashes[self.hashes.len() - 1] ^ 2) % 24) as u32
    }

    /// The cap of the row of the token to come without brown-out, by the definition of the
    /// depth_options.
    pub(crate) fn next_cap(&self) -> u32 {
        self.budget(self.drawn + 1, self.spent + u64::from(self.depths[self.depths.len() - 1]))
    }

    /// The cap of the row that predicts the token after `tokens` tokens, which cost `spent`.
    fn budget(&self, tokens: usize, spent: u64) -> u32 {
        let depth_options = &self.request.depth_options;
        let Some(mean) = depth_options.mean_depth else { return self.cap() };
        let left = (f64::from(mean) * (tokens + 1) as f64 - spent as f64).floor();
        let least = depth_options.min_depth.max(1);
        left.clamp(f64::from(least), f64::from(self.cap())) as u32
    }

    /// A budget is kept from the first token on, whatever the text: the depth of a token is that of
    /// the row that predicted it.
    pub(crate) fn within_budget(&self) {
        let Some(mean) = self.request.depth_options.mean_depth else { return };
        let mut spent = 0;
        for (token, depth) in self.depths[self.request.prompt.len() - 1..].iter().enumerate() {
            spent += depth;
            let all = f64::from(mean) * (token + 1) as f64;
            assert!(token >= self.drawn || f64::from(spent) <= all, "{spent} after {token}");
        }
    }

    /// Goes on with the drawn token.
    pub(crate) fn draw(&mut self, token: u32, cap: u32) {
        self.spent += u64::from(self.depths[self.depths.len() - 1]);
        self.drawn += 1;
        self.push(token, cap);
    }

    /// Tokens drawn so far, which is where the next draw stands.
    pub(crate) fn generated(&self) -> usize {
        self.drawn
    }

    /// What one layer of a tier holds for a position.
    pub(crate) fn content(&self, position: usize, tier: usize, layer: usize) -> u64 {
        mix(self.hashes[position]
            ^ mix((position as u64) << 16 | (tier as u64) << 8 | layer as u64))
    }

    /// Positions below `end` that a tier holds.
    pub(crate) fn positions(&self, tier: usize, end: usize) -> impl Iterator<Item = usize> {
        let least = if self.every_row { tier.min(1) } else { tier };
        (0..end).filter(move |&p| self.depths[p] as usize >= least)
    }
}
