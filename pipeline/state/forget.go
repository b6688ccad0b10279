package state

import "context"

// Deleter removes keys. One that has DeleteAll(ctx, keys) too, because it is far
// away, is given many at a time.
type Deleter interface {
	Delete(ctx context.Context, key string) error
}

// Forget removes the keys that a list gives, and says how many. The list calls
// each for every key until it says no; it is made anew until it gives few, so that
// memory does not grow with the keys.
func Forget(ctx context.Context, d Deleter, list func(each func(key string) bool) error) (n int, err error) {
	const most = 10_000 // are remembered at a time
	for {
		var keys []string
		if err := list(func(key string) bool {
			keys = append(keys, key)
			return len(keys) < most
		}); err != nil {
			return n, err
		}
		if err := deleteAll(ctx, d, keys); err != nil {
			return n, err
		}
		n += len(keys)
		if len(keys) < most {
			return n, nil
		}
	}
}

func deleteAll(ctx context.Context, d Deleter, keys []string) error {
	if all, ok := d.(interface {
		DeleteAll(ctx context.Context, keys []string) error
	}); ok {
		return all.DeleteAll(ctx, keys)
	}
	for _, key := range keys {
		if err := d.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}
