INSERT INTO products (sku, title, price_cents, stock) VALUES
    ('tea-green', 'Green tea, 100 g', 890, 40),
    ('tea-black', 'Black tea, 100 g', 690, 55),
    ('pot-small', 'Teapot, half a litre', 2490, 7);
