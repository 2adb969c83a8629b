CREATE TABLE orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers,
    state       order_state NOT NULL DEFAULT 'open',
    placed_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE order_lines (
    order_id bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
    sku      text NOT NULL REFERENCES products,
    quantity integer NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (order_id, sku)
);

-- Taking a line takes the goods from the shelf; the check on stock refuses what is not there.
CREATE FUNCTION take_from_stock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE products SET stock = stock - NEW.quantity WHERE sku = NEW.sku;
    RETURN NEW;
END;
$$;

CREATE TRIGGER order_lines_take_from_stock
    AFTER INSERT ON order_lines
    FOR EACH ROW EXECUTE FUNCTION take_from_stock();
