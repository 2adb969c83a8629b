import { afterAll } from 'vitest';
import { close } from '../src/clients';

afterAll(close);
