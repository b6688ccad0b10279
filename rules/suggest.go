package rules

// maxSuggest bounds the words that are compared, in bytes: the comparison takes time in the product of their lengths.
const maxSuggest = 64

// Suggest returns the candidate nearest to word, for "did you mean": the one with the fewest edits (insertions, deletions,
// substitutions, swaps of neighbours; the case of ASCII letters does not count), the earlier one if two are equally near.
// It returns "" if none is near enough to be meant: more than one edit for each three bytes of the word.
func Suggest(word string, candidates []string) string {
	if word == "" || len(word) > maxSuggest {
		return ""
	}
	best, limit := "", max(1, len(word)/3)
	lowered := lowerASCII(word)
	for _, c := range candidates {
		if len(c) > maxSuggest || len(c)-len(word) > limit || len(word)-len(c) > limit {
			continue
		}
		if d := distance(lowered, lowerASCII(c)); d <= limit && d < len(c) {
			best, limit = c, d-1
		}
	}
	return best
}

// distance is the restricted Damerau-Levenshtein distance, in bytes.
func distance(a, b string) int {
	var rows [3][maxSuggest + 1]int
	before, above, row := &rows[0], &rows[1], &rows[2]
	for j := range len(b) + 1 {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above, row = above, row, before
	}
	return above[len(b)]
}

// didYouMean is the tail of an error message: `, did you mean "from"?`, or nothing.
func didYouMean(word string, candidates []string) string {
	if s := Suggest(word, candidates); s != "" {
		return `, did you mean "` + s + `"?`
	}
	return ""
}
