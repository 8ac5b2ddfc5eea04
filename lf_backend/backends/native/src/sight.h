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

template <class A> class Eye {
  public:
    Eye(const Call& call, const Task& task, const Keys<A>& keys, const Block<A>& block)
        : call_(call), bands_(task.run->bands), keys_(keys), block_(block) {}

    Sight sight(const Piece& piece, int group) const {
        int64_t first = block_.low[group], last = block_.high[group];
        int64_t low = document_start(call_, block_.batch, first), high = document_end(call_, block_.batch, last) - 1;
        if (piece.band == call_.band_count) return {range(piece, low, high), {piece.low, piece.low}};
        const Reach& reach = bands_[piece.band];
        Sight found;
        found.some = range(piece, most(first - reach.left, low), least(last + reach.right, high));
        if (piece.band > 0) {  // an earlier one may have shown any of them
            found.every = {found.some.low, found.some.low};
            return found;
        }
        low = document_start(call_, block_.batch, last), high = document_end(call_, block_.batch, first) - 1;
        found.every = range(piece, most(last - reach.left, low), least(first + reach.right, high));
        return found;
    }

    // Hides, in scores [rows][LANES] of some keys, what a group does not see.
    void hide(A* scores, const Piece& piece, int group, Range rows, Range every) const {
        bool only = piece.band == 0 && call_.band_count > 0;
        for (int64_t row = rows.low; row < rows.high; ++row) {
            if (row >= every.low && row < every.high) {
                row = least(every.high, rows.high) - 1;
                continue;
            }
            if (only || touched(piece, group, row)) hide_row(scores + (row - rows.low) * LANES<A>, piece, group, row);
        }
    }

  private:
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
        for (int64_t band = 0; band < piece.band; ++band)
            if (near(band, group, position)) return true;
        if (call_.document_start != nullptr && crossed(group, position)) return true;
        if (piece.band == call_.band_count) return call_.columns_causal && position > low;
        const Reach& reach = bands_[piece.band];
        return position < high - reach.left || position > low + reach.right;
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
            if (piece.band < call_.band_count)
                seen = within(query, bands_[piece.band], position);
            else if (call_.columns_causal)
                seen = query >= Int<A>(position);
            for (int64_t band = 0; band < piece.band; ++band)
                if (near(band, group, position)) seen &= ~within(query, bands_[band], position);
            if (call_.document_start != nullptr) {
                int64_t lane = group * LANES<A> + n * WIDTH<A>;
                seen &= (load<Ints<A>>(block_.start + lane) <= Int<A>(position)) &
                        (load<Ints<A>>(block_.last + lane) >= Int<A>(position));
            }
            A* to = scores + n * WIDTH<A>;
            store(to, seen ? load<Vec<A>>(to) : all(A(-INFINITE)));
        }
    }

    static Ints<A> within(Ints<A> query, const Reach& reach, int64_t position) {
        return (query <= Int<A>(position + reach.left)) & (query >= Int<A>(position - reach.right));
    }

    const Call& call_;
    const Reach* bands_;
    const Keys<A>& keys_;
    const Block<A>& block_;
};

}  // namespace lf::LF_SET
