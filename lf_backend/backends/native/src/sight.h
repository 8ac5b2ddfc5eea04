// Which keys of a round the queries of a group see: ranges that hold them, and masks at their edges.
#pragma once

#include "keys.h"
#include "products.h"
#include "queries.h"

namespace lf::LF_SET {

// Keys that some queries of a group see, and those that all see and that no earlier piece has shown.
struct Sight {
    Range some, every;
};

// Keys that some query of some group sees.
LF_INLINE Range seen_by_any(const Sight* sights, int groups) {
    Range found = sights[0].some;
    for (int g = 1; g < groups; ++g) {
        const Range some = sights[g].some;
        if (some.low >= some.high) continue;
        if (found.low >= found.high) found = some;
        found = {least(found.low, some.low), most(found.high, some.high)};
    }
    return found;
}

// First row in [low, high) whose position is at least `wanted`.
template <class A> LF_INLINE int64_t find(const Int<A>* position, int64_t low, int64_t high, int64_t wanted) {
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (position[middle] < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static_assert(BLOCK == RULE_ROWS, "a word of a run is for the lanes of a block");

template <class A> class Eye {
  public:
    Eye(const Call& call, const Task& task, const Keys<A>& keys, const Block<A>& block)
        : call_(call), bands_(task.run->bands), keys_(keys), block_(block) {}

    // Sights of all groups: of a piece at once, and of the keys of rules stretch by stretch, which are rows without a
    // gap. False after the last; `at` counts from 0.
    bool look(const Piece& piece, int64_t& at, Sight* sights) const {
        if (piece.index == rules_piece(call_)) return stretch(piece, at, sights);
        if (at++ > 0) return false;
        for (int group = 0; group < block_.groups; ++group) sights[group] = sight(piece, group);
        return true;
    }

    // Hides, in scores [rows][LANES] of some keys, what a group does not see.
    void hide(A* scores, const Piece& piece, int group, Range rows, Range every) const {
        if (piece.index == rules_piece(call_)) return hide_by_rules(scores, piece, group, rows, every);
        bool only = piece.index == 0 && call_.band_count > 0;
        for (int64_t row = rows.low; row < rows.high; ++row) {
            if (row >= every.low && row < every.high) {
                row = least(every.high, rows.high) - 1;
                continue;
            }
            if (only || touched(piece, group, row)) hide_row(scores + (row - rows.low) * LANES<A>, piece, group, row);
        }
    }

  private:
    Sight sight(const Piece& piece, int group) const {
        int64_t first = block_.low[group], last = block_.high[group];
        int64_t low = document_start(call_, block_.batch, first), high = document_end(call_, block_.batch, last) - 1;
        if (piece.index == call_.band_count) return {range(piece, low, high), {piece.low, piece.low}};
        const Reach& reach = bands_[piece.index];
        Sight found;
        found.some = range(piece, most(first - reach.left, low), least(last + reach.right, high));
        if (piece.index > 0) {  // an earlier one may have shown any of them
            found.every = {found.some.low, found.some.low};
            return found;
        }
        low = document_start(call_, block_.batch, last), high = document_end(call_, block_.batch, first) - 1;
        found.every = range(piece, most(last - reach.left, low), least(first + reach.right, high));
        return found;
    }

    Runs runs() const { return runs_of(call_, block_.head[0], block_.query[0]); }

    // The first run of the block that ends behind a position.
    int64_t run_of(int64_t position) const {
        auto [low, high] = runs();
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (call_.rule_stop[middle] <= position)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }

    // Which lanes of a group see a run; those without a query, all.
    uint64_t lanes(int64_t run, int group) const {
        const uint64_t unused = block_.count < BLOCK ? ~uint64_t(0) << block_.count : 0;
        return (call_.rule_queries[run] | unused) >> (group * LANES<A>) & ALL;
    }

    // The next stretch of the block's runs, of which `at` are done: runs whose rows follow each other without a gap.
    // A group's range begins and ends with keys that some lane of it sees; between them there may be others.
    bool stretch(const Piece& piece, int64_t& at, Sight* sights) const {
        const Runs own = runs();
        Range rows{0, 0};
        for (; own.first + at < own.last; ++at) {
            rows = range(piece, call_.rule_start[own.first + at], call_.rule_stop[own.first + at] - 1);
            if (rows.low < rows.high) break;
        }
        if (own.first + at >= own.last) return false;
        bool full[GROUPS<A>];
        for (int group = 0; group < block_.groups; ++group)
            sights[group].some = {rows.low, rows.low}, full[group] = call_.band_count == 0;
        for (int64_t end = rows.low; rows.low == end && rows.low < rows.high;) {
            end = rows.high;
            for (int group = 0; group < block_.groups; ++group) {
                const uint64_t seen = lanes(own.first + at, group);
                Range& some = sights[group].some;
                if (seen != 0) some = {some.low < some.high ? some.low : rows.low, rows.high};
                full[group] = full[group] && seen == ALL;
            }
            if (own.first + ++at >= own.last) break;
            rows = range(piece, call_.rule_start[own.first + at], call_.rule_stop[own.first + at] - 1);
        }
        for (int group = 0; group < block_.groups; ++group) {
            const Range some = sights[group].some;
            sights[group].every = full[group] ? some : Range{some.low, some.low};
        }
        return true;
    }

    // The same for keys of rules, whose runs say which lanes see them.
    void hide_by_rules(A* scores, const Piece& piece, int group, Range rows, Range every) const {
        if (every.low < every.high) return;
        Ints<A> bit;
        for (int i = 0; i < WIDTH<A>; ++i) bit[i] = Int<A>(1) << i;
        int64_t run = run_of(keys_.position[rows.low]);
        for (int64_t row = rows.low; row < rows.high; ++row) {
            const int64_t position = keys_.position[row];
            while (call_.rule_stop[run] <= position) ++run;
            const uint64_t seen = lanes(run, group);
            if (seen == ALL && !shown_before(piece, group, position)) continue;
            for (int n = 0; n < COLUMNS; ++n) {
                const Int<A> own = Int<A>(seen >> (n * WIDTH<A>) & ((uint64_t(1) << WIDTH<A>) - 1));
                hide_lanes(scores + (row - rows.low) * LANES<A>, piece, group, n, position, (bit & own) != 0);
            }
        }
    }

    Range range(const Piece& piece, int64_t from, int64_t to) const {
        int64_t low = find<A>(keys_.position, piece.low, piece.high, from);
        return {low, find<A>(keys_.position, low, piece.high, to + 1)};
    }

    // Whether the band may show a key of this position to some query of a group.
    bool near(int64_t band, int group, int64_t position) const {
        const Reach& reach = bands_[band];
        bool inside = position >= block_.low[group] - reach.left && position <= block_.high[group] + reach.right;
        return inside && (position - block_.position[group * LANES<A>]) % reach.dilation == 0;
    }

    // Whether some query of a group may not see the key, or sees it in an earlier piece as well.
    bool touched(const Piece& piece, int group, int64_t row) const {
        int64_t position = keys_.position[row], low = block_.low[group], high = block_.high[group];
        if (shown_before(piece, group, position)) return true;
        if (call_.document_start != nullptr && crossed(group, position)) return true;
        if (piece.index == call_.band_count) return call_.columns_causal && position > low;
        const Reach& reach = bands_[piece.index];
        return position < high - reach.left || position > low + reach.right;
    }

    // Whether a band of an earlier piece may show the key to some query of a group.
    bool shown_before(const Piece& piece, int group, int64_t position) const {
        for (int64_t band = 0; band < least(piece.index, call_.band_count); ++band)
            if (near(band, group, position)) return true;
        return false;
    }

    // Whether some query of a group has another document than the key.
    bool crossed(int group, int64_t position) const {
        return position < document_start(call_, block_.batch, block_.high[group]) ||
               position >= document_end(call_, block_.batch, block_.low[group]);
    }

    void hide_row(A* scores, const Piece& piece, int group, int64_t row) const {
        int64_t position = keys_.position[row];
        for (int n = 0; n < COLUMNS; ++n) {
            const Int<A>* at = block_.position + group * LANES<A> + n * WIDTH<A>;
            Ints<A> query = load<Ints<A>>(at), seen = query == query;
            if (piece.index < call_.band_count)
                seen = within(query, bands_[piece.index], position);
            else if (call_.columns_causal)
                seen = query >= Int<A>(position);
            if (call_.document_start != nullptr) {
                int64_t lane = group * LANES<A> + n * WIDTH<A>;
                seen &= (load<Ints<A>>(block_.start + lane) <= Int<A>(position)) &
                        (load<Ints<A>>(block_.last + lane) >= Int<A>(position));
            }
            hide_lanes(scores, piece, group, n, position, seen);
        }
    }

    // Keeps the scores of a vector of lanes that see a key, unless an earlier piece has shown it.
    void hide_lanes(A* scores, const Piece& piece, int group, int n, int64_t position, Ints<A> seen) const {
        const Ints<A> query = load<Ints<A>>(block_.position + group * LANES<A> + n * WIDTH<A>);
        for (int64_t band = 0; band < least(piece.index, call_.band_count); ++band)
            if (near(band, group, position)) seen &= ~within(query, bands_[band], position);
        A* to = scores + n * WIDTH<A>;
        store(to, seen ? load<Vec<A>>(to) : all(A(-INFINITE)));
    }

    static Ints<A> within(Ints<A> query, const Reach& reach, int64_t position) {
        return (query <= Int<A>(position + reach.left)) & (query >= Int<A>(position - reach.right));
    }

    static constexpr uint64_t ALL = ~uint64_t(0) >> (64 - LANES<A>);  // lanes of a group

    const Call& call_;
    const Reach* bands_;
    const Keys<A>& keys_;
    const Block<A>& block_;
};

}  // namespace lf::LF_SET
